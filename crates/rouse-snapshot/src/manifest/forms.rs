//! How structs, enums and indices lie in a section, given their fields.

/// Structs: their fields in this order.
macro_rules! record {
    ($name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        impl Wire for $name {
            const NAME: &'static str = stringify!($name);
            const MIN_LEN: usize = 0 $(+ <$ty as Wire>::MIN_LEN)*;

            fn put(&self, out: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $(<$ty as Wire>::put($field, out);)*
            }

            fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
                Ok(Self { $($field: <$ty as Wire>::take(input)?),* })
            }
        }
    };
}

/// Enums: one byte says which variant, then its fields in this order.
macro_rules! choice {
    ($name:ident { $($tag:literal => $variant:ident $({ $($field:ident: $ty:ty),* $(,)? })?),* $(,)? }) => {
        impl Wire for $name {
            const NAME: &'static str = stringify!($name);
            const MIN_LEN: usize = 1;

            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        out.push($tag);
                        $($(<$ty as Wire>::put($field, out);)*)?
                    })*
                }
            }

            fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
                match u8::take(input)? {
                    $($tag => Ok(Self::$variant $({ $($field: <$ty as Wire>::take(input)?),* })?),)*
                    tag => Err(WireError::Tag { tag, of: Self::NAME }),
                }
            }
        }
    };
}

/// Indices: a bare number.
macro_rules! index {
    ($($name:ident),*) => {$(
        impl Wire for $name {
            const NAME: &'static str = stringify!($name);
            const MIN_LEN: usize = u32::MIN_LEN;

            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
                u32::take(input).map(Self)
            }
        }
    )*};
}

pub(super) use {choice, index, record};
