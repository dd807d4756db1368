//! One keep-alive HTTP/1.1 connection, blocking.
//!
//! `rouse bench` measures the node through this client, so it does the least that is correct: one write per
//! request, no thread hand-over, headers left unparsed until somebody asks. An async client costs several
//! times the tens of microseconds that this one does, which at a boot of one millisecond would be seen.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::endpoint::Endpoint;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest response head that is accepted. A Lambda log tail is 4 KiB, base64.
const MAX_HEAD: usize = 256 * 1024;
/// More headers than any node sends.
const MAX_HEADERS: usize = 96;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nobody accepts connections there.
    #[error("no node answers at http://{authority}")]
    Connect {
        /// Host and port that were tried.
        authority: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the node broke")]
    Io(#[from] io::Error),
    /// The node closed the connection before it answered.
    #[error("the node closed the connection without an answer")]
    Closed,
    /// What came is not HTTP.
    #[error("the answer is not HTTP/1.1: {0}")]
    Malformed(String),
}

/// What to ask.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `POST`, ...
    pub method: &'a str,
    /// Path and query, percent-encoded.
    pub path: &'a str,
    /// Headers besides `Host` and `Content-Length`.
    pub headers: &'a [(&'a str, &'a str)],
    /// Body; may be empty.
    pub body: &'a [u8],
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Body, without transfer encoding.
    pub body: Vec<u8>,
    head: Vec<u8>,
}

impl Response {
    /// Value of the header `name` (compared without regard to case), if it is there and is text.
    pub fn header(&self, name: &str) -> Option<String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed.parse(&self.head).ok()?;
        let found = parsed
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::to_owned)
    }
}

/// A connection to a node.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    authority: String,
    /// Bytes that were read beyond the last answer.
    ahead: Vec<u8>,
    /// Reused for each request.
    out: Vec<u8>,
}

/// How the end of a body is told.
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Connection {
    /// Connects, without Nagle's algorithm.
    pub fn open(endpoint: &Endpoint) -> Result<Self, ExchangeError> {
        let authority = endpoint.authority();
        let stream = connect(&authority).map_err(|source| ExchangeError::Connect {
            authority: authority.clone(),
            source,
        })?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            authority,
            ahead: Vec::new(),
            out: Vec::new(),
        })
    }

    /// Limits how long a read may wait; `None` waits for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Sends a request and reads its answer to the end.
    pub fn exchange(&mut self, request: &Request<'_>) -> Result<Response, ExchangeError> {
        self.send(request)?;
        self.receive(request.method == "HEAD")
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), ExchangeError> {
        self.out.clear();
        write!(
            self.out,
            "{} {} HTTP/1.1\r\nhost: {}\r\n",
            request.method, request.path, self.authority
        )?;
        for (name, value) in request.headers {
            write!(self.out, "{name}: {value}\r\n")?;
        }
        write!(self.out, "content-length: {}\r\n\r\n", request.body.len())?;
        self.out.extend_from_slice(request.body);
        match self.stream.write_all(&self.out) {
            Ok(()) => Ok(()),
            // A node that refuses a large body answers and closes while we still write: its answer is worth more
            // than our error.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&mut self, bodyless: bool) -> Result<Response, ExchangeError> {
        let (status, head, framing) = loop {
            let (status, head, framing) = self.receive_head()?;
            // 1xx answers only announce the real one.
            if status >= 200 {
                break (status, head, framing);
            }
        };
        let body = if bodyless || status == 204 || status == 304 {
            Vec::new()
        } else {
            match framing {
                Framing::Length(length) => self.take(length)?,
                Framing::Chunked => self.receive_chunks()?,
                Framing::UntilClose => {
                    let mut body = std::mem::take(&mut self.ahead);
                    self.stream.read_to_end(&mut body)?;
                    body
                }
            }
        };
        Ok(Response { status, body, head })
    }

    fn receive_head(&mut self) -> Result<(u16, Vec<u8>, Framing), ExchangeError> {
        let mut searched = 0;
        let end = loop {
            let from = searched.min(self.ahead.len());
            if let Some(at) = find(&self.ahead[from..], b"\r\n\r\n") {
                break from + at + 4;
            }
            // The terminator may straddle two reads.
            searched = self.ahead.len().saturating_sub(3);
            if self.ahead.len() > MAX_HEAD {
                return Err(ExchangeError::Malformed("the head does not end".to_owned()));
            }
            self.fill()?;
        };
        let rest = self.ahead.split_off(end);
        let head = std::mem::replace(&mut self.ahead, rest);
        let (status, framing) = parse_head(&head)?;
        Ok((status, head, framing))
    }

    fn receive_chunks(&mut self) -> Result<Vec<u8>, ExchangeError> {
        let mut body = Vec::new();
        loop {
            let line = self.take_line()?;
            let size = line.split(';').next().unwrap_or("").trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| ExchangeError::Malformed(format!("chunk size {size:?}")))?;
            if size == 0 {
                // Trailers, until the empty line.
                while !self.take_line()?.is_empty() {}
                return Ok(body);
            }
            body.extend_from_slice(&self.take(size)?);
            let end = self.take(2)?;
            if end != b"\r\n" {
                return Err(ExchangeError::Malformed(
                    "a chunk does not end with a line break".to_owned(),
                ));
            }
        }
    }

    /// The next line without its CR LF.
    fn take_line(&mut self) -> Result<String, ExchangeError> {
        loop {
            if let Some(at) = find(&self.ahead, b"\r\n") {
                let line = self.take(at + 2)?;
                return String::from_utf8(line[..at].to_vec())
                    .map_err(|_| ExchangeError::Malformed("a line that is not text".to_owned()));
            }
            if self.ahead.len() > MAX_HEAD {
                return Err(ExchangeError::Malformed("a line does not end".to_owned()));
            }
            self.fill()?;
        }
    }

    /// Exactly `length` bytes.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, ExchangeError> {
        if self.ahead.len() >= length {
            let rest = self.ahead.split_off(length);
            return Ok(std::mem::replace(&mut self.ahead, rest));
        }
        let mut bytes = std::mem::take(&mut self.ahead);
        let have = bytes.len();
        bytes.resize(length, 0);
        self.stream
            .read_exact(&mut bytes[have..])
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ExchangeError::Closed,
                _ => ExchangeError::Io(error),
            })?;
        Ok(bytes)
    }

    fn fill(&mut self) -> Result<(), ExchangeError> {
        let mut chunk = [0; 16 * 1024];
        let got = loop {
            match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if got == 0 {
            return Err(ExchangeError::Closed);
        }
        self.ahead.extend_from_slice(&chunk[..got]);
        Ok(())
    }
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn parse_head(head: &[u8]) -> Result<(u16, Framing), ExchangeError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed
        .parse(head)
        .map_err(|error| ExchangeError::Malformed(error.to_string()))?;
    let status = parsed
        .code
        .ok_or_else(|| ExchangeError::Malformed("no status".to_owned()))?;
    let mut framing = Framing::UntilClose;
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if header.value.eq_ignore_ascii_case(b"chunked") {
                // Wins over a length (RFC 9112, 6.3).
                return Ok((status, Framing::Chunked));
            }
            return Err(ExchangeError::Malformed(
                "unknown transfer encoding".to_owned(),
            ));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value)
                .ok()
                .and_then(|text| text.trim().parse().ok());
            framing = Framing::Length(
                length.ok_or_else(|| ExchangeError::Malformed("bad content-length".to_owned()))?,
            );
        }
    }
    Ok((status, framing))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves `answers` one after the other to one connection, each written in pieces of `piece` bytes.
    fn node(answers: Vec<&'static [u8]>, piece: usize) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("client");
            stream.set_nodelay(true).expect("nodelay");
            let mut request = [0; 4096];
            for answer in answers {
                let got = stream.read(&mut request).expect("request");
                assert!(got > 0);
                for part in answer.chunks(piece) {
                    stream.write_all(part).expect("answer");
                }
            }
        });
        format!("http://{address}").parse().expect("endpoint")
    }

    const GET: Request<'_> = Request {
        method: "GET",
        path: "/",
        headers: &[("x-a", "b")],
        body: b"",
    };

    #[test]
    fn reads_lengths_chunks_and_keeps_the_connection() {
        for piece in [1, 7, 4096] {
            let endpoint = node(
                vec![
                    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Boot: fork\r\n\r\nhello",
                    b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nt: 1\r\n\r\n",
                    b"HTTP/1.1 204 No Content\r\n\r\n",
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
                ],
                piece,
            );
            let mut connection = Connection::open(&endpoint).expect("open");
            let first = connection.exchange(&GET).expect("first");
            assert_eq!((first.status, first.body.as_slice()), (200, &b"hello"[..]));
            assert_eq!(first.header("x-boot").as_deref(), Some("fork"));
            let second = connection.exchange(&GET).expect("second");
            assert_eq!(
                (second.status, second.body.as_slice()),
                (202, &b"abc0123456789"[..])
            );
            assert_eq!(connection.exchange(&GET).expect("third").status, 204);
            assert_eq!(connection.exchange(&GET).expect("fourth").status, 404);
            assert_eq!(
                connection.exchange(&GET).expect("fifth").body,
                b"until the end"
            );
            assert!(matches!(
                connection.exchange(&GET),
                Err(ExchangeError::Closed | ExchangeError::Io(_))
            ));
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let cut = node(
            vec![b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"],
            4096,
        );
        assert!(matches!(
            Connection::open(&cut).expect("open").exchange(&GET),
            Err(ExchangeError::Closed)
        ));
        let garbage = node(vec![b"hello there\r\n\r\n"], 4096);
        assert!(matches!(
            Connection::open(&garbage).expect("open").exchange(&GET),
            Err(ExchangeError::Malformed(_))
        ));
        let free = TcpListener::bind("127.0.0.1:0")
            .expect("loopback")
            .local_addr()
            .expect("address");
        let nobody = format!("http://{free}").parse().expect("endpoint");
        assert!(matches!(
            Connection::open(&nobody),
            Err(ExchangeError::Connect { .. })
        ));
    }
}
