//! How values lie in a section: little-endian, unaligned, one after the other.
//!
//! The encoding is canonical (one value, one sequence of bytes), and a list is believed only when
//! that many elements can still follow, so that a forged count cannot make the reader allocate.

use super::error::WireError;

/// A value that can be written into a section and read back.
pub(super) trait Wire: Sized {
    /// Name for error messages.
    const NAME: &'static str;
    /// The fewest bytes that a value takes; at least 1.
    const MIN_LEN: usize;

    fn put(&self, out: &mut Vec<u8>);
    fn take(input: &mut Input<'_>) -> Result<Self, WireError>;

    /// A list's elements; bytes have a faster way.
    fn put_all(items: &[Self], out: &mut Vec<u8>) {
        for item in items {
            item.put(out);
        }
    }

    /// `count` elements, of which the caller knows that they can fit.
    fn take_all(count: usize, input: &mut Input<'_>) -> Result<Vec<Self>, WireError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(Self::take(input)?);
        }
        Ok(items)
    }
}

/// The part of a section that was not read yet.
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*head)
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            const NAME: &'static str = stringify!($ty);
            const MIN_LEN: usize = size_of::<$ty>();

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
                Ok(Self::from_le_bytes(input.array()?))
            }
        }
    )*};
}

integers!(u16, u32, u64, i32, i128);

impl Wire for u8 {
    const NAME: &'static str = "u8";
    const MIN_LEN: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let [byte] = input.array()?;
        Ok(byte)
    }

    fn put_all(items: &[Self], out: &mut Vec<u8>) {
        out.extend_from_slice(items);
    }

    fn take_all(count: usize, input: &mut Input<'_>) -> Result<Vec<Self>, WireError> {
        input.bytes(count).map(<[u8]>::to_vec)
    }
}

impl Wire for bool {
    const NAME: &'static str = "bool";
    const MIN_LEN: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(WireError::Tag {
                tag,
                of: Self::NAME,
            }),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    const NAME: &'static str = "Option";
    const MIN_LEN: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        bool::take(input)?.then(|| T::take(input)).transpose()
    }
}

impl<T: Wire> Wire for Vec<T> {
    const NAME: &'static str = "Vec";
    const MIN_LEN: usize = size_of::<u64>();

    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        T::put_all(self, out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let count = u64::take(input)?;
        let fits = input.0.len() / T::MIN_LEN;
        match usize::try_from(count) {
            Ok(count) if count <= fits => T::take_all(count, input),
            _ => Err(WireError::Count { count }),
        }
    }
}

impl Wire for String {
    const NAME: &'static str = "String";
    const MIN_LEN: usize = <Vec<u8>>::MIN_LEN;

    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        Self::from_utf8(Vec::take(input)?).map_err(|_| WireError::Text)
    }
}

impl<T: Wire + Default + Copy, const N: usize> Wire for [T; N] {
    const NAME: &'static str = "array";
    const MIN_LEN: usize = T::MIN_LEN * N;

    fn put(&self, out: &mut Vec<u8>) {
        T::put_all(self, out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let mut items = [T::default(); N];
        for item in &mut items {
            *item = T::take(input)?;
        }
        Ok(items)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    const NAME: &'static str = "pair";
    const MIN_LEN: usize = A::MIN_LEN + B::MIN_LEN;

    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok((A::take(input)?, B::take(input)?))
    }
}

impl<A: Wire, B: Wire, C: Wire> Wire for (A, B, C) {
    const NAME: &'static str = "triple";
    const MIN_LEN: usize = A::MIN_LEN + B::MIN_LEN + C::MIN_LEN;

    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
        self.2.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok((A::take(input)?, B::take(input)?, C::take(input)?))
    }
}
