//! The `wire!` macro: a `repr(C)` structure of integers with a checked reader and a writer.
//!
//! The kernel writes these structures as they lie in memory; user space never casts bytes to them. One definition
//! gives both sides, so that they cannot drift apart.

/// A value that lies in a record as plain bytes in native byte order.
pub trait Wire: Sized + Copy {
    /// Reads the value from the start of `bytes`; `None` when they are too few.
    fn read(bytes: &[u8]) -> Option<Self>;
    /// Writes the value to the start of `bytes`; `None` when there is no room.
    fn write(&self, bytes: &mut [u8]) -> Option<()>;
}

macro_rules! integer {
    ($($t:ty),+) => {$(
        impl Wire for $t {
            #[inline]
            fn read(bytes: &[u8]) -> Option<Self> {
                Some(<$t>::from_ne_bytes(*bytes.first_chunk()?))
            }
            #[inline]
            fn write(&self, bytes: &mut [u8]) -> Option<()> {
                *bytes.first_chunk_mut()? = self.to_ne_bytes();
                Some(())
            }
        }
    )+};
}
integer!(u8, u16, u32, u64, i32);

impl<T: Wire + Default, const N: usize> Wire for [T; N] {
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut all = [T::default(); N];
        for (slot, chunk) in all.iter_mut().zip(bytes.get(..N * size_of::<T>())?.chunks_exact(size_of::<T>())) {
            *slot = T::read(chunk)?;
        }
        Some(all)
    }
    #[inline]
    fn write(&self, bytes: &mut [u8]) -> Option<()> {
        let room = bytes.get_mut(..N * size_of::<T>())?;
        for (value, chunk) in self.iter().zip(room.chunks_exact_mut(size_of::<T>())) {
            value.write(chunk)?;
        }
        Some(())
    }
}

/// Defines a `repr(C)` structure without implicit padding, with [`Wire`] for it.
macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)+ }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)+ }

        // A hole would carry uninitialised kernel memory to user space.
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())+, "padding in a record");

        impl $crate::wire::Wire for $name {
            #[inline]
            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self {
                    $($field: $crate::wire::Wire::read(bytes.get(core::mem::offset_of!($name, $field)..)?)?,)+
                })
            }
            #[inline]
            fn write(&self, bytes: &mut [u8]) -> Option<()> {
                $($crate::wire::Wire::write(&self.$field, bytes.get_mut(core::mem::offset_of!($name, $field)..)?)?;)+
                Some(())
            }
        }
    };
}
pub(crate) use wire;
