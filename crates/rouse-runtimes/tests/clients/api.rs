//! A Runtime API of one connection at a time, driven step by step by the test, and the client process beside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use rouse_runtimes::{Interpreters, Runtime, command, install};
use serde_json::Value;
use tempfile::TempDir;

/// The folder that stands for /var/runtime.
pub fn runtime_dir() -> &'static Path {
    static DIR: OnceLock<std::path::PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtime");
        install(&dir).unwrap();
        dir
    })
}

/// One request of the client.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A client process and the server end of its connection.
pub struct Client {
    child: Child,
    listener: TcpListener,
    connection: Option<BufReader<TcpStream>>,
    left_open: Vec<BufReader<TcpStream>>,
    _task: TempDir,
}

impl Client {
    /// Starts the client of `runtime` with a package of the given files.
    pub fn start(
        runtime: Runtime,
        files: &[(&str, &str)],
        handler: &str,
        env: &[(&str, &str)],
    ) -> Client {
        let task = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = task.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let started = command(runtime, &Interpreters::default(), task.path(), handler);
        let here = runtime_dir().to_str().unwrap();
        let local = |text: &str| text.replace("/var/runtime", here);
        let child = Command::new(&started.argv[0])
            .args(started.argv[1..].iter().map(|argument| local(argument)))
            .current_dir(task.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LAMBDA_TASK_ROOT", task.path())
            .env(
                "AWS_LAMBDA_RUNTIME_API",
                listener.local_addr().unwrap().to_string(),
            )
            .env("AWS_LAMBDA_FUNCTION_NAME", "tested")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .envs(started.env.iter().map(|(name, value)| (name, local(value))))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Client {
            child,
            listener,
            connection: None,
            left_open: Vec::new(),
            _task: task,
        }
    }

    fn connection(&mut self) -> &mut BufReader<TcpStream> {
        if self.connection.is_none() {
            self.connection = Some(BufReader::new(self.listener.accept().unwrap().0));
        }
        self.connection.as_mut().unwrap()
    }

    /// Closes the connection, as if the server had gone away.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// Leaves the connection open and turns to the next one that the client makes.
    pub fn next_connection(&mut self) {
        self.left_open.extend(self.connection.take());
    }

    /// Waits for the next request.
    pub fn request(&mut self) -> Request {
        let stream = self.connection();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        let (method, path) = (
            words.next().unwrap_or("").to_owned(),
            words.next().unwrap_or("").to_owned(),
        );
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            match line.trim_end().split_once(':') {
                Some((name, value)) => {
                    headers.push((name.to_ascii_lowercase(), value.trim().to_owned()))
                }
                None => break,
            }
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
        stream.read_exact(&mut body).unwrap();
        Request {
            method,
            path,
            headers,
            body,
        }
    }

    /// Waits for the next request, which must be `method` on `/2018-06-01/runtime/{path}`.
    #[track_caller]
    pub fn expect(&mut self, method: &str, path: &str) -> Request {
        let request = self.request();
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            (method, format!("/2018-06-01/runtime/{path}").as_str()),
            "{}",
            String::from_utf8_lossy(&request.body)
        );
        request
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.connection().get_mut().write_all(bytes).unwrap();
    }

    /// Answers the request in progress.
    pub fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let mut reply = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            reply.push_str(&format!("{name}: {value}\r\n"));
        }
        reply.push_str("\r\n");
        let mut bytes = reply.into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes);
    }

    /// Answers the request in progress with an event.
    pub fn event(&mut self, id: &str, event: &str) {
        self.answer(
            200,
            &[
                ("Lambda-Runtime-Aws-Request-Id", id),
                ("Lambda-Runtime-Deadline-Ms", "99999999999999"),
                (
                    "Lambda-Runtime-Invoked-Function-Arn",
                    "arn:aws:lambda:us-east-1:000000000000:function:tested",
                ),
            ],
            event.as_bytes(),
        );
    }

    /// Waits for `invocation/next`, answers it with `event`, and returns the response.
    #[track_caller]
    pub fn invoke(&mut self, event: &str) -> Value {
        self.expect("GET", "invocation/next");
        self.event("1", event);
        self.response()
    }

    /// The response to the event in progress, which is acknowledged.
    #[track_caller]
    pub fn response(&mut self) -> Value {
        let response = self.expect("POST", "invocation/1/response");
        self.answer(202, &[], b"");
        response.json()
    }

    /// The client takes the next invocation as the reply to an answer, small ones at least.
    #[track_caller]
    pub fn expect_next_with_answer(&mut self) {
        self.expect("GET", "invocation/next");
        self.event("1", "1");
        for event in ["2", "3"] {
            let response = self.expect("POST", "invocation/1/response");
            assert_eq!(response.header("rouse-response-accept"), Some("invocation"));
            self.event("1", event);
        }
        assert_eq!(self.response(), serde_json::json!(3));
        // What is kept while there is no work must be little.
        self.expect("GET", "invocation/next");
        self.event("1", &format!("\"{}\"", "x".repeat(100_000)));
        let response = self.expect("POST", "invocation/1/response");
        assert_eq!(response.header("rouse-response-accept"), None);
        self.answer(202, &[], b"");
        assert_eq!(self.invoke("4"), serde_json::json!(4));
    }

    /// As `invoke`, for a handler that fails.
    #[track_caller]
    pub fn invoke_error(&mut self, event: &str) -> Value {
        self.expect("GET", "invocation/next");
        self.event("1", event);
        let response = self.expect("POST", "invocation/1/error");
        self.answer(202, &[], b"");
        response.json()
    }

    /// The error that ends the init.
    #[track_caller]
    pub fn init_error(&mut self) -> (Value, Option<String>) {
        let request = self.expect("POST", "init/error");
        self.answer(202, &[], b"");
        (
            request.json(),
            request
                .header("lambda-runtime-function-error-type")
                .map(str::to_owned),
        )
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends the process and returns what it wrote to its standard output.
    pub fn output(mut self) -> String {
        drop(self.child.kill());
        let mut text = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
