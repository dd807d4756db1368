//! Where a node answers: `http://HOST:PORT`.

use std::fmt;
use std::str::FromStr;

/// Address of a node's HTTP API. Holds no path, no user and no scheme other than plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Another scheme than http, or none.
    #[error("an endpoint begins with http://")]
    Scheme,
    /// Something follows the port.
    #[error("an endpoint is only http://HOST:PORT, without a path")]
    Path,
    /// No host.
    #[error("the endpoint has no host")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("the endpoint's port is not a number from 1 to 65535")]
    Port,
}

impl Endpoint {
    /// `HOST:PORT`, with brackets around an IPv6 address: what connects, and what `Host:` says.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let rest = text.strip_prefix("http://").ok_or(EndpointError::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(EndpointError::Path);
        }
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or(EndpointError::Host)?;
            (host, after.strip_prefix(':'))
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        if host.is_empty() {
            return Err(EndpointError::Host);
        }
        let port = match port {
            None => 80,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or(EndpointError::Port)?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in [
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "http://node-7.lan:80",
        ] {
            assert_eq!(
                text.parse::<Endpoint>().map(|e| e.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(
            "http://a".parse::<Endpoint>().map(|e| e.authority()),
            Ok("a:80".to_owned())
        );
        assert_eq!(
            "http://a:9/".parse::<Endpoint>().map(|e| e.authority()),
            Ok("a:9".to_owned())
        );
    }

    #[test]
    fn refuses_the_rest_with_its_reason() {
        for (text, error) in [
            ("127.0.0.1:9000", EndpointError::Scheme),
            ("https://a:1", EndpointError::Scheme),
            ("http://a:1/path", EndpointError::Path),
            ("http://me@a:1", EndpointError::Path),
            ("http://:1", EndpointError::Host),
            ("http://a:0", EndpointError::Port),
            ("http://a:65536", EndpointError::Port),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }
}
