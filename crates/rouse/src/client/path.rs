//! Percent-encoding of path segments.

use std::fmt::Write;

/// `text` as one segment of a path (RFC 3986: everything but the unreserved characters is encoded).
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn encodes_all_but_unreserved() {
        assert_eq!(segment("a-B_0.~"), "a-B_0.~");
        assert_eq!(segment("a/b?c:d é"), "a%2Fb%3Fc%3Ad%20%C3%A9");
    }
}
