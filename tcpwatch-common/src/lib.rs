//! The kernel side and the user side of tcpwatch agree here.
#![cfg_attr(not(test), no_std)]
