//! The kernel programs, as build.rs made them.

include!(concat!(env!("OUT_DIR"), "/objects.rs"));
