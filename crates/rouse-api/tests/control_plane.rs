//! The control plane over HTTP, on a node that has no sandboxes: everything but running functions.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use rouse_node::boot::{Boot, BootError, Booted, BoxFuture, Live, LoadedImage, Purpose};
use rouse_node::{Node, NodeConfig};
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{CheckpointReport, Residency};
use serde_json::{Value, json};
use tower::ServiceExt;

/// A host on which no sandbox can be made.
struct NoSandboxes;

fn refused<'a, T: 'a + Send>() -> BoxFuture<'a, Result<T, BootError>> {
    Box::pin(async { Err(BootError::new("no sandbox could be made")) })
}

impl Boot for NoSandboxes {
    fn cold<'a>(&'a self, _: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        refused()
    }

    fn checkpoint<'a>(
        &'a self,
        _: Box<dyn Live>,
        _: Purpose,
        _: u16,
        _: &'a LaunchSpec,
        _: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        refused()
    }

    fn load<'a>(
        &'a self,
        _: &'a Path,
        _: &'a [LoadedImage],
        _: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        refused()
    }
}

struct Api {
    router: Router,
    node: Arc<Node>,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn is_error(&self, status: u16, kind: &str, text: &str) {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        assert_eq!(self.headers["x-amzn-errortype"], kind);
        assert!(self.headers.contains_key("x-amzn-requestid"));
        let body = self.json();
        assert_eq!(body["Message"], body["message"]);
        assert_eq!(body["Type"], if status < 500 { "User" } else { "Service" });
        let message = body["Message"].as_str().unwrap();
        assert!(message.contains(text), "{message}");
    }
}

impl Api {
    fn start(state: &Path) -> Self {
        let config = NodeConfig {
            state_dir: state.to_owned(),
            ..NodeConfig::default()
        };
        let node = Node::start(config, NoSandboxes).unwrap();
        Api {
            router: rouse_api::router(Arc::clone(&node)),
            node,
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node:9000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .router
            .clone()
            .oneshot(request.body(body.into()).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Reply {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], Body::empty()).await
    }

    async fn json(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.send(
            method,
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
        .await
    }

    async fn create(&self, name: &str, more: Value) -> Reply {
        let mut body = json!({
            "FunctionName": name, "Runtime": "python3.11", "Role": "arn:aws:iam::000000000000:role/r", "Handler": "app.handler",
            "Code": { "ZipFile": STANDARD.encode(zip("app.py", "def handler(e, c): return e")) },
        });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.json("POST", FUNCTIONS, &body).await
    }

    /// Waits until no build runs any more, as the waiters of clients do.
    async fn settled(&self, name: &str) -> Value {
        loop {
            let configuration = self
                .get(&format!("{FUNCTIONS}/{name}/configuration"))
                .await
                .json();
            if configuration["State"] != "Pending"
                && configuration["LastUpdateStatus"] != "InProgress"
            {
                return configuration;
            }
            tokio::task::yield_now().await;
        }
    }
}

const FUNCTIONS: &str = "/2015-03-31/functions";

fn zip(name: &str, text: &str) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer
        .start_file(name, zip::write::SimpleFileOptions::default())
        .unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap().into_inner()
}

#[tokio::test]
async fn a_function_from_creation_to_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path());
    let created = api.create("hello", json!({ "Timeout": 9, "Environment": { "Variables": { "KEY": "value" } }, "Tags": { "a": "b" } })).await;
    assert_eq!(created.status, 201);
    let body = created.json();
    assert_eq!(body["State"], "Pending");
    assert_eq!(body["StateReasonCode"], "Creating");
    assert_eq!(body["StateReason"], "The function is being created.");
    assert_eq!(
        body["FunctionArn"],
        "arn:aws:lambda:us-east-1:000000000000:function:hello"
    );
    assert_eq!(
        (&body["Version"], &body["Timeout"], &body["MemorySize"]),
        (&json!("$LATEST"), &json!(9), &json!(128))
    );
    assert_eq!(body["Environment"]["Variables"]["KEY"], "value");
    assert_eq!(body["CodeSha256"].as_str().unwrap().len(), 44);

    let active = api.settled("hello").await;
    assert_eq!(
        (&active["State"], &active["LastUpdateStatus"]),
        (&json!("Active"), &json!("Successful"))
    );

    let got = api.get(&format!("{FUNCTIONS}/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello?Qualifier=%24LATEST")).await.json();
    assert_eq!(
        got["Configuration"]["FunctionArn"],
        "arn:aws:lambda:us-east-1:000000000000:function:hello:$LATEST"
    );
    assert_eq!(got["Tags"]["a"], "b");
    let location = got["Code"]["Location"]
        .as_str()
        .unwrap()
        .strip_prefix("http://node:9000")
        .unwrap();
    let package = api.get(location).await;
    assert_eq!(
        (package.status.as_u16(), package.body),
        (200, zip("app.py", "def handler(e, c): return e"))
    );

    let description = api.get("/rouse/v1/functions/hello").await.json();
    assert_eq!(description["snapshot"]["state"], "failed");
    assert!(
        description["snapshot"]["reason"]
            .as_str()
            .unwrap()
            .contains("no sandbox could be made")
    );
    assert_eq!(description["configuration"]["FunctionName"], "hello");
    assert_eq!(
        description["boots"],
        json!({ "cold": 0, "restore": 0, "fork": 0, "parked": 0, "rewind": 0, "warm": 0 })
    );

    api.create("hello", json!({})).await.is_error(
        409,
        "ResourceConflictException",
        "Function already exist: hello",
    );
    let deleted = api
        .send("DELETE", &format!("{FUNCTIONS}/hello"), &[], Body::empty())
        .await;
    assert_eq!(deleted.status, 204);
    api.get(&format!("{FUNCTIONS}/hello")).await.is_error(
        404,
        "ResourceNotFoundException",
        "Function not found: arn:aws:lambda:us-east-1:000000000000:function:hello",
    );
    while api.get(location).await.status != 404 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn updates_wait_for_each_other_and_check_the_revision() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path());
    api.create("f", json!({})).await;
    let before = api.settled("f").await;
    let path = format!("{FUNCTIONS}/f/configuration");
    api.json(
        "PUT",
        &path,
        &json!({ "MemorySize": 256, "RevisionId": "wrong" }),
    )
    .await
    .is_error(
        412,
        "PreconditionFailedException",
        "The Revision Id provided does not match",
    );
    let updated = api
        .json(
            "PUT",
            &path,
            &json!({ "MemorySize": 256, "RevisionId": before["RevisionId"] }),
        )
        .await
        .json();
    assert_eq!(
        (&updated["LastUpdateStatus"], &updated["State"]),
        (&json!("InProgress"), &json!("Active"))
    );
    api.json("PUT", &path, &json!({ "MemorySize": 512 })).await.is_error(
        409,
        "ResourceConflictException",
        "An update is in progress for resource: arn:aws:lambda:us-east-1:000000000000:function:f",
    );
    let after = api.settled("f").await;
    assert_eq!(after["MemorySize"], 256);
    assert_ne!(after["RevisionId"], before["RevisionId"]);
    let code = json!({ "ZipFile": STANDARD.encode(zip("app.py", "new")) });
    let updated = api
        .json("PUT", &format!("{FUNCTIONS}/f/code"), &code)
        .await
        .json();
    assert_ne!(updated["CodeSha256"], after["CodeSha256"]);
    assert_eq!(api.settled("f").await["MemorySize"], 256);
}

#[tokio::test]
async fn versions_are_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path());
    api.create("f", json!({})).await;
    api.settled("f").await;
    let versions = format!("{FUNCTIONS}/f/versions");
    let first = api
        .json("POST", &versions, &json!({ "Description": "one" }))
        .await;
    assert_eq!(
        (first.status.as_u16(), &first.json()["Version"]),
        (201, &json!("1"))
    );
    assert_eq!(
        api.json("POST", &versions, &json!({})).await.json()["Version"],
        "1"
    );
    api.json(
        "PUT",
        &format!("{FUNCTIONS}/f/configuration"),
        &json!({ "Timeout": 7 }),
    )
    .await;
    api.settled("f").await;
    assert_eq!(
        api.json("POST", &versions, &json!({})).await.json()["Version"],
        "2"
    );
    let listed = api.get(&versions).await.json();
    let numbers: Vec<&str> = listed["Versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["Version"].as_str().unwrap())
        .collect();
    assert_eq!(numbers, ["$LATEST", "1", "2"]);
    assert_eq!(
        api.get(&format!("{FUNCTIONS}/f%3A1/configuration"))
            .await
            .json()["Timeout"],
        3
    );
    assert_eq!(
        api.get(&format!("{FUNCTIONS}/f?Qualifier=2")).await.json()["Configuration"]["Timeout"],
        7
    );
    assert_eq!(
        api.send("DELETE", &format!("{FUNCTIONS}/f?Qualifier=1"), &[], "")
            .await
            .status,
        204
    );
    assert_eq!(
        api.get(&format!("{FUNCTIONS}/f?Qualifier=1")).await.status,
        404
    );
    assert_eq!(
        api.send("DELETE", &format!("{FUNCTIONS}/f"), &[], "")
            .await
            .status,
        204
    );
    assert_eq!(
        api.get(&format!("{FUNCTIONS}/f?Qualifier=2")).await.status,
        404
    );
}

#[tokio::test]
async fn lists_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path());
    for name in ["c", "a", "b"] {
        api.create(name, json!({})).await;
    }
    // boto3 writes the slash.
    let page = api.get("/2015-03-31/functions/?MaxItems=2").await.json();
    let names = |page: &Value| {
        page["Functions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["FunctionName"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&page), ["a", "b"]);
    let rest = api
        .get(&format!(
            "/2015-03-31/functions/?Marker={}",
            page["NextMarker"].as_str().unwrap()
        ))
        .await
        .json();
    assert_eq!(names(&rest), ["c"]);
    assert_eq!(rest["NextMarker"], Value::Null);
    api.get("/2015-03-31/functions?MaxItems=0").await.is_error(
        400,
        "ValidationException",
        "MaxItems",
    );
}

#[tokio::test]
async fn bad_requests_get_lambda_s_answers() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path());
    let zip_file = |bytes: &[u8]| json!({ "Code": { "ZipFile": STANDARD.encode(bytes) } });
    let unzip = "Could not unzip uploaded file. Please check your file, then try to upload again.";
    let escape = {
        let mut bytes = zip("aaaaa", "x");
        while let Some(at) = bytes.windows(5).position(|w| w == b"aaaaa") {
            bytes[at..at + 5].copy_from_slice(b"../aa");
        }
        bytes
    };
    api.create("f", zip_file(b"no zip")).await.is_error(
        400,
        "InvalidParameterValueException",
        unzip,
    );
    api.create("f", zip_file(&escape)).await.is_error(
        400,
        "InvalidParameterValueException",
        "leads out of the package",
    );
    api.create("f", json!({ "Code": { "ZipFile": "%%%" } }))
        .await
        .is_error(400, "InvalidParameterValueException", unzip);
    api.create(
        "f",
        json!({ "Code": { "S3Bucket": "bucket", "S3Key": "k" } }),
    )
    .await
    .is_error(400, "InvalidParameterValueException", "ZipFile");
    api.create("f", json!({ "Runtime": "cobol85" }))
        .await
        .is_error(
            400,
            "InvalidParameterValueException",
            "Value cobol85 at 'runtime'",
        );
    api.create("f", json!({ "MemorySize": 1 })).await.is_error(
        400,
        "ValidationException",
        "1 validation error detected: Value '1' at 'memorySize'",
    );
    api.create("a b", json!({})).await.is_error(
        400,
        "ValidationException",
        "Value 'a b' at 'functionName'",
    );
    api.send("POST", FUNCTIONS, &[], "{").await.is_error(
        400,
        "InvalidRequestContentException",
        "Could not parse request body into json",
    );
    api.get("/2015-03-31/nothing").await.is_error(
        404,
        "UnknownOperationException",
        "GET /2015-03-31/nothing",
    );
    api.send("PATCH", FUNCTIONS, &[], "")
        .await
        .is_error(404, "UnknownOperationException", "PATCH");
    assert_eq!(
        api.get("/2015-03-31/functions").await.json()["Functions"],
        json!([])
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("code")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn invocations_that_never_reach_a_function() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path());
    let path = format!("{FUNCTIONS}/f/invocations");
    api.send("POST", &path, &[], "{}").await.is_error(
        404,
        "ResourceNotFoundException",
        "Function not found",
    );
    api.create("f", json!({})).await;
    api.settled("f").await;
    api.send("POST", &path, &[], "{").await.is_error(
        400,
        "InvalidRequestContentException",
        "Could not parse payload into json",
    );
    api.send("POST", &path, &[], vec![b'1'; 6_291_457])
        .await
        .is_error(413, "RequestTooLargeException", "6291456");
    api.send(
        "POST",
        &path,
        &[("x-amz-invocation-type", "Sometimes")],
        "{}",
    )
    .await
    .is_error(400, "ValidationException", "invocationType");
    api.send("POST", &path, &[("x-amz-client-context", "???")], "{}")
        .await
        .is_error(400, "InvalidRequestContentException", "Base64");
    api.send("POST", &path, &[("x-rouse-boot", "hot")], "{}")
        .await
        .is_error(400, "InvalidParameterValueException", "no boot path");
    let restore = api
        .send("POST", &path, &[("x-rouse-boot", "restore")], "{}")
        .await;
    restore.is_error(
        409,
        "SnapStartNotReadyException",
        "no sandbox could be made",
    );
    api.send("POST", &path, &[], "{}").await.is_error(
        502,
        "ResourceNotReadyException",
        "no sandbox could be made",
    );
    let dry = api
        .send("POST", &path, &[("x-amz-invocation-type", "DryRun")], "{}")
        .await;
    assert_eq!((dry.status.as_u16(), dry.body.len()), (204, 0));
    let event = api
        .send("POST", &path, &[("x-amz-invocation-type", "Event")], "{}")
        .await;
    assert_eq!((event.status.as_u16(), event.body.len()), (202, 0));
    api.send(
        "POST",
        &path,
        &[("x-amz-invocation-type", "Event")],
        vec![b'1'; 1_048_577],
    )
    .await
    .is_error(
        413,
        "RequestTooLargeException",
        "is too large for the Event invocation type",
    );
}

#[tokio::test]
async fn a_restart_finds_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let (before, versions);
    {
        let api = Api::start(dir.path());
        api.create("f", json!({ "Publish": true, "Description": "d" }))
            .await;
        before = api.settled("f").await;
        api.settled("f%3A1").await;
        versions = api.get(&format!("{FUNCTIONS}/f/versions")).await.json();
        assert_eq!(versions["Versions"].as_array().unwrap().len(), 2);
        let node = Arc::downgrade(&api.node);
        drop(api);
        // The background tasks hold the node only while they work.
        while node.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
    std::fs::create_dir_all(dir.path().join("snapshots/f/half.new")).unwrap();
    let api = Api::start(dir.path());
    assert!(!dir.path().join("snapshots/f").exists());
    assert_eq!(
        api.get(&format!("{FUNCTIONS}/f/configuration"))
            .await
            .json(),
        before
    );
    assert_eq!(
        api.get(&format!("{FUNCTIONS}/f/versions")).await.json(),
        versions
    );
    assert_eq!(api.get("/healthz").await.status, 200);
    assert_eq!(api.get("/readyz").await.json()["functions"], 1);
}
