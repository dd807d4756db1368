//! The place of a request in a trace, as it travels in headers.
//!
//! Two forms are known: W3C's `traceparent` and Lambda's `X-Amzn-Trace-Id`. Both come from anybody; what does not parse is
//! as if it were not there.

use std::fmt;

use uuid::Uuid;

/// A span, and the trace that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the trace, never 0.
    pub trace: u128,
    /// Of the span, never 0.
    pub span: u64,
    /// Whether its maker has it recorded, if that has been decided.
    pub is_sampled: Option<bool>,
}

impl TraceContext {
    /// A span without a parent, in a trace of its own.
    pub fn root() -> Self {
        let (a, b) = (Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes());
        let seconds = (crate::function::record::now_ms() / 1000) as u32;
        // X-Ray wants the time in front. The last 48 bits decide about sampling: the first bytes of an id are all random.
        let mut trace = [0; 16];
        trace[..4].copy_from_slice(&seconds.to_be_bytes());
        trace[4..10].copy_from_slice(&a[..6]);
        trace[10..].copy_from_slice(&b[..6]);
        Self {
            trace: u128::from_be_bytes(trace).max(1),
            span: new_span(),
            is_sampled: None,
        }
    }

    /// A span below this one.
    pub fn child(self) -> Self {
        Self {
            span: new_span(),
            ..self
        }
    }

    /// Parses `00-<trace>-<span>-<flags>`; later versions may have more behind it.
    pub fn from_traceparent(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = hex(version, 2)?;
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let flags = hex(flags, 2)?;
        Self::new(hex(trace, 32)?, hex(span, 16)?, Some(flags & 1 == 1))
    }

    /// Parses `Root=1-<8 digits>-<24 digits>;Parent=<16 digits>;Sampled=0`, in any order; without a parent nothing is known.
    pub fn from_amazon(text: &str) -> Option<Self> {
        let field = |wanted: &str| {
            let mut fields = text
                .split(';')
                .filter_map(|field| field.trim().split_once('='));
            fields.find_map(|(name, value)| (name == wanted).then_some(value))
        };
        let (seconds, rest) = field("Root")?.strip_prefix("1-")?.split_once('-')?;
        let trace = hex(seconds, 8)? << 96 | hex(rest, 24)?;
        let is_sampled = match field("Sampled") {
            Some("1") => Some(true),
            Some("0") => Some(false),
            _ => None,
        };
        Self::new(trace, hex(field("Parent")?, 16)?, is_sampled)
    }

    fn new(trace: u128, span: u128, is_sampled: Option<bool>) -> Option<Self> {
        let span = u64::try_from(span).ok()?;
        (trace != 0 && span != 0).then_some(Self {
            trace,
            span,
            is_sampled,
        })
    }
}

/// In Lambda's form.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Root=1-{:08x}-{:024x};Parent={:016x};Sampled={}",
            self.trace >> 96,
            self.trace & ((1 << 96) - 1),
            self.span,
            u8::from(self.is_sampled == Some(true))
        )
    }
}

/// Another id of a span.
pub(super) fn new_span() -> u64 {
    let bytes = Uuid::new_v4().into_bytes();
    let [.., a, b, c, d, e, f, g, h] = bytes;
    u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
}

/// Exactly so many lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_it = text.len() == digits && text.bytes().all(is_hex);
    is_it.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: TraceContext = TraceContext {
        trace: 0x5759_e988_bd86_2e3f_e1be_46a9_9427_2793,
        span: 0x5399_5c3f_42cd_8ad8,
        is_sampled: Some(true),
    };

    #[test]
    fn both_forms_are_read() {
        let amazon = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
        assert_eq!(TraceContext::from_amazon(amazon), Some(KNOWN));
        assert_eq!(KNOWN.to_string(), amazon);
        let w3c = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";
        assert_eq!(TraceContext::from_traceparent(w3c), Some(KNOWN));
        let later = "01-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01-more";
        assert_eq!(TraceContext::from_traceparent(later), Some(KNOWN));
    }

    #[test]
    fn what_is_wrong_is_not_there() {
        for text in [
            "",
            "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8",
            "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01-more",
            "ff-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01",
            "00-5759E988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01",
            "00-00000000000000000000000000000000-53995c3f42cd8ad8-01",
            "00-5759e988bd862e3fe1be46a994272793-0000000000000000-01",
        ] {
            assert_eq!(TraceContext::from_traceparent(text), None, "{text}");
        }
        for text in [
            "Root=1-5759e988-bd862e3fe1be46a994272793",
            "Root=2-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8",
            "Root=1-5759e988-bd862e3fe1be46a99427279;Parent=53995c3f42cd8ad8",
            "Parent=53995c3f42cd8ad8",
        ] {
            assert_eq!(TraceContext::from_amazon(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_may_come(text in ".{0,100}") {
            let _ = TraceContext::from_traceparent(&text);
            let _ = TraceContext::from_amazon(&text);
        }

        #[test]
        fn what_is_written_is_read(trace in 1u128.., span in 1u64.., is_sampled: bool) {
            let context = TraceContext { trace, span, is_sampled: Some(is_sampled) };
            prop_assert_eq!(TraceContext::from_amazon(&context.to_string()), Some(context));
        }
    }
}
