//! The node's end of the runtime API, as far as one function on one connection needs it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::PATIENCE;

/// A guest's requests have no longer heads and bodies than this, bytes.
const MOST: u64 = 1 << 20;

/// The function did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The connection is broken, or what came was no HTTP, or nothing came in time.
    #[error("cannot talk to the function")]
    Connection(#[from] io::Error),
    /// It asked for something else.
    #[error("the function has sent {found:?} where it should {wanted}")]
    Unexpected {
        /// The first line of its request.
        found: String,
        /// What was waited for.
        wanted: &'static str,
    },
}

/// A function's connection.
pub struct Api(BufReader<UnixStream>);

impl Api {
    /// The function at the other end of `stream`.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Waits until the function asks for an event.
    pub fn next(&mut self) -> Result<(), ApiError> {
        let (found, _) = self.request()?;
        if found.starts_with("GET /2018-06-01/runtime/invocation/next ") {
            return Ok(());
        }
        let wanted = "ask for an event";
        Err(ApiError::Unexpected { found, wanted })
    }

    /// Gives it the `n`th event, for which it has asked, and returns its answer.
    pub fn call(&mut self, n: u64, event: &[u8]) -> Result<Vec<u8>, ApiError> {
        let head = format!(
            "200 OK\r\nLambda-Runtime-Aws-Request-Id: {n}\r\nLambda-Runtime-Deadline-Ms: 9999999999999\r\n\
             Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:measured"
        );
        self.respond(&head, event)?;
        let (found, body) = self.request()?;
        if found.starts_with(&format!(
            "POST /2018-06-01/runtime/invocation/{n}/response "
        )) {
            self.respond("202 Accepted", b"{}")?;
            return Ok(body);
        }
        let wanted = "answer";
        Err(ApiError::Unexpected { found, wanted })
    }

    /// The first line of a request, and its body.
    fn request(&mut self) -> io::Result<(String, Vec<u8>)> {
        let mut head = (&mut self.0).take(MOST);
        let mut first = String::new();
        head.read_line(&mut first)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            head.read_line(&mut line)?;
            // Also where the connection has ended.
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = (value.trim().parse())
                    .ok()
                    .filter(|length| *length <= MOST)
                    .ok_or(io::ErrorKind::InvalidData)?;
            }
        }
        let mut body = Vec::new();
        let read = (&mut self.0).take(length).read_to_end(&mut body)?;
        if (read as u64) < length || first.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((first.trim_end().to_owned(), body))
    }

    fn respond(&mut self, head: &str, body: &[u8]) -> io::Result<()> {
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        let bytes = [head.as_bytes(), body].concat();
        self.0.get_mut().write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a function that sends `requests` while it is asked to double a number.
    fn answer(requests: &str) -> Result<Vec<u8>, ApiError> {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets can be made");
        theirs
            .write_all(requests.as_bytes())
            .expect("there is room");
        theirs
            .shutdown(std::net::Shutdown::Write)
            .expect("it is open");
        let mut api = Api::new(ours).expect("it is a socket");
        api.next()?;
        api.call(7, b"{}")
    }

    #[test]
    fn a_function_may_send_anything() {
        const NEXT: &str = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: a\r\n\r\n";
        let post = |n: u32, length: &str, body: &str| {
            format!(
                "{NEXT}POST /2018-06-01/runtime/invocation/{n}/response HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        assert_eq!(answer(&post(7, "2", "{}")).expect("it is an answer"), b"{}");
        for (requests, wanted) in [
            (String::new(), "cannot talk"),
            (NEXT.to_owned(), "cannot talk"),
            (post(8, "2", "{}"), "where it should answer"),
            (post(7, "3", "{}"), "cannot talk"),
            (post(7, "99999999999", "{}"), "cannot talk"),
            (post(7, "two", "{}"), "cannot talk"),
            ("\r\n\r\n".to_owned(), "ask for an event"),
        ] {
            let error = answer(&requests).expect_err("it is none").to_string();
            assert!(error.contains(wanted), "{requests}: {error}");
        }
    }
}
