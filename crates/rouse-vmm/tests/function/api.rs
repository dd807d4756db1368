//! The runtime API, as far as one function on one connection needs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

pub struct Api(pub BufReader<UnixStream>);

impl Api {
    /// The next request: its first line and its body.
    fn request(&mut self) -> (String, Vec<u8>) {
        let mut first = String::new();
        self.0.read_line(&mut first).expect("a request comes");
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("headers come");
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the body comes");
        (first.trim_end().to_owned(), body)
    }

    fn answer(&mut self, head: &str, body: &str) {
        let text = format!(
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0
            .get_mut()
            .write_all(text.as_bytes())
            .expect("the guest takes it");
    }

    /// Waits until the function asks for an event.
    pub fn next(&mut self) {
        let (next, _) = self.request();
        assert!(
            next.starts_with("GET /2018-06-01/runtime/invocation/next"),
            "{next}"
        );
    }

    /// Gives it one.
    pub fn event(&mut self, id: u32, event: &str) {
        let head = format!(
            "200 OK\r\nLambda-Runtime-Aws-Request-Id: request-{id}\r\nLambda-Runtime-Deadline-Ms: 9999999999999\r\n\
             Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:tested"
        );
        self.answer(&head, event);
    }

    /// Its answer.
    pub fn response(&mut self, id: u32) -> serde_json::Value {
        let (response, body) = self.request();
        let wanted = format!("POST /2018-06-01/runtime/invocation/request-{id}/response");
        assert!(
            response.starts_with(&wanted),
            "{response}: {}",
            String::from_utf8_lossy(&body)
        );
        self.answer("202 Accepted", "{}");
        serde_json::from_slice(&body).expect("the answer is JSON")
    }

    /// All three.
    pub fn invoke(&mut self, id: u32, event: &str) -> serde_json::Value {
        self.next();
        self.event(id, event);
        self.response(id)
    }
}
