//! The operations of a node's API that the command uses: Lambda's control plane, and rouse's own routes.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::connection::{Connection, ExchangeError, Request, Response};
use super::endpoint::Endpoint;
use super::path::segment;
pub use super::shapes::{
    Configuration, Description, Environment, FunctionSettings, Invocation, InvokeOptions, LogLine,
    SnapshotView,
};

/// Longest that a metadata request may take. Invocations may take as long as the function's timeout.
const METADATA_TIMEOUT: Duration = Duration::from_secs(60);

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The node answered with an error in Lambda's shape.
    #[error("{message} ({kind})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Lambda's name of the error, for instance `ResourceNotFoundException`.
        kind: String,
        /// Lambda's text.
        message: String,
    },
    /// No answer came.
    #[error("{operation} did not get an answer")]
    Exchange {
        /// What was asked.
        operation: &'static str,
        /// Why.
        source: ExchangeError,
    },
    /// The answer is not the JSON that the operation promises.
    #[error("{operation} was answered with something else than the JSON it promises")]
    Shape {
        /// What was asked.
        operation: &'static str,
        /// Where the JSON differs.
        source: serde_json::Error,
    },
    /// The request could not be written as JSON.
    #[error("{operation} could not be written as JSON")]
    Encode {
        /// What was to be asked.
        operation: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether the node says that the function exists already, or is being changed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, ApiError::Refused { status: 409, .. })
    }
}

/// A client of one node. Opens a connection for each operation: commands ask a handful of times, and a
/// connection that a restarted node forgot must not fail them.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
}

impl Client {
    /// A client of the node at `endpoint`. Nothing is sent yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// CreateFunction from a zip's bytes.
    pub fn create_function(
        &self,
        name: &str,
        settings: &FunctionSettings,
        zip: &[u8],
    ) -> Result<Value, ApiError> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            function_name: &'a str,
            role: &'a str,
            code: Code,
            #[serde(flatten)]
            settings: &'a FunctionSettings,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Code {
            zip_file: String,
        }
        let operation = "CreateFunction";
        // Lambda requires a role; rouse has none to give.
        let body = Body {
            function_name: name,
            role: "arn:aws:iam::000000000000:role/rouse",
            code: Code {
                zip_file: BASE64.encode(zip),
            },
            settings,
        };
        self.json(
            operation,
            "POST",
            "/2015-03-31/functions",
            Some(&encode(operation, &body)?),
        )
    }

    /// UpdateFunctionCode from a zip's bytes.
    pub fn update_code(&self, name: &str, zip: &[u8]) -> Result<Value, ApiError> {
        let operation = "UpdateFunctionCode";
        let body = encode(
            operation,
            &serde_json::json!({ "ZipFile": BASE64.encode(zip) }),
        )?;
        self.json(
            operation,
            "PUT",
            &format!("/2015-03-31/functions/{}/code", segment(name)),
            Some(&body),
        )
    }

    /// UpdateFunctionConfiguration.
    pub fn update_configuration(
        &self,
        name: &str,
        settings: &FunctionSettings,
    ) -> Result<Value, ApiError> {
        let operation = "UpdateFunctionConfiguration";
        let body = encode(operation, settings)?;
        self.json(
            operation,
            "PUT",
            &format!("/2015-03-31/functions/{}/configuration", segment(name)),
            Some(&body),
        )
    }

    /// GetFunctionConfiguration.
    pub fn configuration(&self, name: &str) -> Result<Configuration, ApiError> {
        let operation = "GetFunctionConfiguration";
        let value = self.json(
            operation,
            "GET",
            &format!("/2015-03-31/functions/{}/configuration", segment(name)),
            None,
        )?;
        decode(operation, value)
    }

    /// ListFunctions, all pages of it.
    pub fn list(&self) -> Result<Vec<Value>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Page {
            functions: Vec<Value>,
            #[serde(default)]
            next_marker: Option<String>,
        }
        let operation = "ListFunctions";
        let mut functions = Vec::new();
        let mut path = "/2015-03-31/functions".to_owned();
        loop {
            let page: Page = decode(operation, self.json(operation, "GET", &path, None)?)?;
            functions.extend(page.functions);
            match page.next_marker.filter(|marker| !marker.is_empty()) {
                None => return Ok(functions),
                Some(marker) => path = format!("/2015-03-31/functions?Marker={}", segment(&marker)),
            }
        }
    }

    /// DeleteFunction.
    pub fn delete(&self, name: &str) -> Result<(), ApiError> {
        let operation = "DeleteFunction";
        let response = self.exchange(
            operation,
            "DELETE",
            &format!("/2015-03-31/functions/{}", segment(name)),
            &[],
            b"",
            Some(METADATA_TIMEOUT),
        )?;
        accepted(response).map(drop)
    }

    /// Invoke.
    pub fn invoke(
        &self,
        name: &str,
        payload: &[u8],
        options: InvokeOptions<'_>,
    ) -> Result<Invocation, ApiError> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(options.boot.map(|boot| ("x-rouse-boot", boot)));
        headers.extend(options.instance.map(|id| ("x-rouse-instance", id)));
        if options.asynchronous {
            headers.push(("x-amz-invocation-type", "Event"));
        }
        if options.tail {
            headers.push(("x-amz-log-type", "Tail"));
        }
        let response = self.exchange(
            "Invoke",
            "POST",
            &invocation_path(name),
            &headers,
            payload,
            None,
        )?;
        let response = accepted(response)?;
        Ok(Invocation {
            status: response.status,
            function_error: response.header("x-amz-function-error"),
            boot: response.header("x-rouse-boot"),
            stages: response
                .header("server-timing")
                .map(|text| parse_server_timing(&text))
                .unwrap_or_default(),
            log_tail: response
                .header("x-amz-log-result")
                .and_then(|text| BASE64.decode(text).ok())
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            request_id: response.header("x-amzn-requestid"),
            payload: response.body,
        })
    }

    /// rouse's own description of a function, as JSON.
    pub fn describe(&self, name: &str) -> Result<Value, ApiError> {
        self.json(
            "describe",
            "GET",
            &format!("/rouse/v1/functions/{}", segment(name)),
            None,
        )
    }

    /// What the memory of a function's snapshot is made of, as JSON.
    pub fn memory(&self, name: &str) -> Result<Value, ApiError> {
        self.json(
            "describe",
            "GET",
            &format!("/rouse/v1/functions/{}/memory", segment(name)),
            None,
        )
    }

    /// When a function's snapshots are taken and which versions there are, as JSON.
    pub fn snapshots(&self, name: &str) -> Result<Value, ApiError> {
        self.json(
            "snapshots",
            "GET",
            &format!("/rouse/v1/functions/{}/snapshots", segment(name)),
            None,
        )
    }

    /// Changes when a function's snapshots are taken, and waits for one. That takes as long as its init and warm-up.
    pub fn set_snapshot_point(&self, name: &str, point: &Value) -> Result<(), ApiError> {
        let operation = "snapshot-point";
        let response = self.exchange(
            operation,
            "PUT",
            &format!("/rouse/v1/functions/{}/snapshot-point", segment(name)),
            &[("content-type", "application/json")],
            &encode(operation, point)?,
            None,
        )?;
        accepted(response).map(drop)
    }

    /// Changes how a function is served, and says how it is, as JSON.
    pub fn set_serving(&self, name: &str, patch: &Value) -> Result<Value, ApiError> {
        let operation = "serving";
        self.json(
            operation,
            "PUT",
            &format!("/rouse/v1/functions/{}/serving", segment(name)),
            Some(&encode(operation, patch)?),
        )
    }

    /// Instances that can be named, as JSON.
    pub fn instances(&self) -> Result<Value, ApiError> {
        self.json("instances", "GET", "/rouse/v1/instances", None)
    }

    /// Starts instances of a function that are held, as JSON. That takes as long as they take to come up.
    pub fn start_instances(&self, name: &str, wish: &Value) -> Result<Value, ApiError> {
        let path = format!("/rouse/v1/functions/{}/instances", segment(name));
        self.made("start", &path, wish)
    }

    /// Copies an instance that waits, as JSON. That takes as long as the copies take to come up.
    pub fn fork_instance(&self, id: &str, wish: &Value) -> Result<Value, ApiError> {
        let path = format!("/rouse/v1/instances/{}/fork", segment(id));
        self.made("fork", &path, wish)
    }

    fn made(&self, operation: &'static str, path: &str, wish: &Value) -> Result<Value, ApiError> {
        let headers = [("content-type", "application/json")];
        let body = encode(operation, wish)?;
        let response = accepted(self.exchange(operation, "POST", path, &headers, &body, None)?)?;
        serde_json::from_slice(&response.body)
            .map_err(|source| ApiError::Shape { operation, source })
    }

    /// Ends an instance.
    pub fn end_instance(&self, id: &str) -> Result<(), ApiError> {
        let path = format!("/rouse/v1/instances/{}", segment(id));
        let timeout = Some(METADATA_TIMEOUT);
        accepted(self.exchange("end", "DELETE", &path, &[], b"", timeout)?).map(drop)
    }

    /// Goes back to a version of a function's snapshot.
    pub fn rollback(&self, name: &str, version: Option<u64>) -> Result<Value, ApiError> {
        let operation = "rollback";
        let body = encode(operation, &serde_json::json!({ "version": version }))?;
        self.json(
            operation,
            "POST",
            &format!("/rouse/v1/functions/{}/rollback", segment(name)),
            Some(&body),
        )
    }

    /// Where functions' memory lies, and what the cost model knows, as JSON.
    pub fn tiers(&self) -> Result<Value, ApiError> {
        self.json("tiers", "GET", "/rouse/v1/tiers", None)
    }

    /// All that the node counts and holds, as JSON.
    pub fn node(&self) -> Result<Value, ApiError> {
        self.json("node", "GET", "/rouse/v1/node", None)
    }

    /// The last `tail` lines of a function's log, oldest first.
    pub fn logs(&self, name: &str, tail: usize) -> Result<Vec<Value>, ApiError> {
        let operation = "logs";
        let path = format!("/rouse/v1/functions/{}/logs?tail={tail}", segment(name));
        let response =
            accepted(self.exchange(operation, "GET", &path, &[], b"", Some(METADATA_TIMEOUT))?)?;
        response
            .body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                serde_json::from_slice(line).map_err(|source| ApiError::Shape { operation, source })
            })
            .collect()
    }

    fn json(
        &self,
        operation: &'static str,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<Value, ApiError> {
        let headers: &[(&str, &str)] = if body.is_some() {
            &[("content-type", "application/json")]
        } else {
            &[]
        };
        let response = accepted(self.exchange(
            operation,
            method,
            path,
            headers,
            body.unwrap_or(b""),
            Some(METADATA_TIMEOUT),
        )?)?;
        serde_json::from_slice(&response.body)
            .map_err(|source| ApiError::Shape { operation, source })
    }

    fn exchange(
        &self,
        operation: &'static str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Option<Duration>,
    ) -> Result<Response, ApiError> {
        let wrap = |source| ApiError::Exchange { operation, source };
        let mut connection = Connection::open(&self.endpoint).map_err(wrap)?;
        connection
            .set_read_timeout(timeout)
            .map_err(|error| wrap(error.into()))?;
        connection
            .exchange(&Request {
                method,
                path,
                headers,
                body,
            })
            .map_err(wrap)
    }
}

/// Reads JSON that a node sent into a type.
pub fn decode<T: serde::de::DeserializeOwned>(
    operation: &'static str,
    value: Value,
) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|source| ApiError::Shape { operation, source })
}

/// Path of a function's invocations.
pub fn invocation_path(name: &str) -> String {
    format!("/2015-03-31/functions/{}/invocations", segment(name))
}

/// `Server-Timing: name;dur=1.25, other;dur=3` as names and milliseconds.
pub fn parse_server_timing(text: &str) -> Vec<(String, f64)> {
    text.split(',')
        .filter_map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let name = parts.next().filter(|name| !name.is_empty())?;
            let duration = parts.find_map(|part| part.strip_prefix("dur="))?;
            Some((name.to_owned(), duration.trim_matches('"').parse().ok()?))
        })
        .collect()
}

fn encode<T: Serialize>(operation: &'static str, body: &T) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(body).map_err(|source| ApiError::Encode { operation, source })
}

/// The response if its status is 2xx, else the error it carries.
fn accepted(response: Response) -> Result<Response, ApiError> {
    if (200..300).contains(&response.status) {
        return Ok(response);
    }
    let body: Value = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let message = text("Message")
        .or_else(|| text("message"))
        .unwrap_or_else(|| String::from_utf8_lossy(&response.body).trim().to_owned());
    let kind = response
        .header("x-amzn-errortype")
        .unwrap_or_else(|| format!("HTTP {}", response.status));
    Err(ApiError::Refused {
        status: response.status,
        kind,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_server_timing() {
        assert_eq!(
            parse_server_timing(
                "sandbox;dur=0.125, map;desc=\"x\";dur=2,broken, ;dur=1, total;dur=\"3.5\""
            ),
            vec![
                ("sandbox".to_owned(), 0.125),
                ("map".to_owned(), 2.0),
                ("total".to_owned(), 3.5)
            ]
        );
        assert_eq!(parse_server_timing(""), vec![]);
    }

    #[test]
    fn settings_name_only_what_is_set() {
        let settings = FunctionSettings {
            memory_size: Some(256),
            ..FunctionSettings::default()
        };
        assert_eq!(
            serde_json::to_value(settings).expect("json"),
            serde_json::json!({ "MemorySize": 256 })
        );
    }

    #[test]
    fn a_description_may_leave_members_out() {
        let description: Description = serde_json::from_value(
            serde_json::json!({ "snapshot": { "state": "ready", "pages": 3 } }),
        )
        .expect("description");
        assert_eq!(
            (
                description.snapshot.state.as_str(),
                description.snapshot.pages
            ),
            ("ready", Some(3))
        );
    }
}
