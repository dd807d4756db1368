//! Names of functions as clients write them: a name, a partial ARN or a whole ARN, with or without qualifier.

use crate::refusal::Refusal;

const PATTERN: &str = r"(arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}(-gov)?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?";

/// Version that stands for the code as it was last updated.
pub const LATEST: &str = "$LATEST";

/// A function as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRef {
    /// Plain name, at most 64 characters.
    pub name: String,
    /// Version or alias, if one was given.
    pub qualifier: Option<String>,
    /// Region and account of the ARN, where given.
    pub region: Option<String>,
    /// Account, where given.
    pub account: Option<String>,
}

impl FunctionRef {
    /// Reads `text` (already percent-decoded).
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let malformed = || {
            Refusal::Validation(format!(
                "1 validation error detected: Value '{text}' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: {PATTERN}"
            ))
        };
        if text.len() > 256 {
            return Err(too_long(text, 256));
        }
        let mut parts = text.split(':').peekable();
        if parts.peek() == Some(&"arn") {
            parts.next();
            let partition = parts.next().unwrap_or_default();
            let partition_ok = partition
                .strip_prefix("aws")
                .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'));
            if !partition_ok || parts.next() != Some("lambda") {
                return Err(malformed());
            }
        }
        let region = parts.next_if(|part| is_region(part)).map(str::to_owned);
        let account = parts.next_if(|part| is_account(part)).map(str::to_owned);
        let marked = parts.next_if(|part| *part == "function").is_some();
        // "function" alone is a legal name; a number of 12 digits, too.
        let (name, account) = match (parts.next(), marked, account) {
            (Some(name), _, account) => (name.to_owned(), account),
            (None, true, account) => ("function".to_owned(), account),
            (None, false, Some(account)) => (account, None),
            (None, false, None) => return Err(malformed()),
        };
        let qualifier = parts.next().map(str::to_owned);
        if parts.next().is_some()
            || !is_word(&name)
            || qualifier
                .as_deref()
                .is_some_and(|q| q != LATEST && !is_word(q))
        {
            return Err(malformed());
        }
        if name.len() > 64 {
            return Err(too_long(&name, 64));
        }
        Ok(FunctionRef {
            name,
            qualifier,
            region,
            account,
        })
    }

    /// Joins the qualifier of the name with that of the query; they must not contradict each other.
    pub fn qualified(mut self, query: Option<&str>) -> Result<Self, Refusal> {
        match (query.filter(|q| !q.is_empty()), self.qualifier.as_deref()) {
            (Some(query), Some(own)) if query != own => Err(Refusal::InvalidParameterValue(
                "The derived qualifier from the function name does not match the specified qualifier.".into(),
            )),
            (Some(query), _) if query != LATEST && !is_word(query) => Err(Refusal::Validation(format!(
                r"1 validation error detected: Value '{query}' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: (|[a-zA-Z0-9$_-]+)"
            ))),
            (Some(query), _) => {
                self.qualifier = Some(query.to_owned());
                Ok(self)
            }
            (None, _) => Ok(self),
        }
    }
}

fn too_long(text: &str, limit: usize) -> Refusal {
    Refusal::Validation(format!(
        "1 validation error detected: Value '{text}' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to {limit}"
    ))
}

/// ARN of a function, with `:qualifier` when one is given.
pub fn function_arn(region: &str, account: &str, name: &str, qualifier: Option<&str>) -> String {
    let mut arn = format!("arn:aws:lambda:{region}:{account}:function:{name}");
    if let Some(qualifier) = qualifier {
        arn.push(':');
        arn.push_str(qualifier);
    }
    arn
}

/// Does it look like `us-east-1` or `us-gov-west-1`?
pub fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lower = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    match parts.as_slice() {
        [area, middle @ .., number] => {
            area.len() == 2
                && lower(area)
                && (1..=2).contains(&middle.len())
                && middle.iter().all(|part| lower(part))
                && number.len() == 1
                && number.bytes().all(|b| b.is_ascii_digit())
        }
        _ => false,
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (String, Option<String>, Option<String>, Option<String>) {
        let one = FunctionRef::parse(text).unwrap();
        (one.name, one.qualifier, one.region, one.account)
    }

    #[test]
    fn every_form_of_the_api_is_read() {
        let s = |text: &str| Some(text.to_owned());
        assert_eq!(parse("hello"), ("hello".into(), None, None, None));
        assert_eq!(
            parse("hello:$LATEST"),
            ("hello".into(), s("$LATEST"), None, None)
        );
        assert_eq!(
            parse("000000000000:function:hello"),
            ("hello".into(), None, None, s("000000000000"))
        );
        assert_eq!(
            parse("function:hello:3"),
            ("hello".into(), s("3"), None, None)
        );
        assert_eq!(
            parse("arn:aws:lambda:us-east-1:123456789012:function:hello:prod"),
            ("hello".into(), s("prod"), s("us-east-1"), s("123456789012"))
        );
        assert_eq!(parse("function"), ("function".into(), None, None, None));
        assert_eq!(
            parse("123456789012"),
            ("123456789012".into(), None, None, None)
        );
    }

    #[test]
    fn everything_else_is_refused() {
        let long = "x".repeat(65);
        for bad in [
            "",
            ":",
            "a b",
            "a/b",
            "../x",
            "arn:aws:s3:::b",
            "a:b:c:d",
            "a:",
            "arn:aws:lambda:us-east-1",
            "ä",
            long.as_str(),
            "a:$OLD",
        ] {
            assert!(FunctionRef::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn qualifiers_must_agree() {
        let f = || FunctionRef::parse("f:1").unwrap();
        assert_eq!(
            f().qualified(Some("1")).unwrap().qualifier.as_deref(),
            Some("1")
        );
        assert!(f().qualified(Some("2")).is_err());
        assert_eq!(f().qualified(None).unwrap().qualifier.as_deref(), Some("1"));
    }

    proptest::proptest! {
        #[test]
        fn an_arn_is_read_back(name in "[a-zA-Z0-9_-]{1,64}", qualifier in proptest::option::of("[a-zA-Z0-9_-]{1,20}")) {
            let arn = function_arn("eu-west-3", "123456789012", &name, qualifier.as_deref());
            let read = FunctionRef::parse(&arn).unwrap();
            proptest::prop_assert_eq!(read.name, name);
            proptest::prop_assert_eq!(read.qualifier, qualifier);
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = FunctionRef::parse(&text);
        }
    }
}
