//! Invokes one function over one keep-alive connection, and times it.

use std::time::Instant;

use super::floor::memory::Memory;
use crate::client::api::{invocation_path, parse_server_timing};
use crate::client::connection::{Connection, ExchangeError, Request, Response};
use crate::client::endpoint::Endpoint;

/// One timed request.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// From before the request is written until its answer is read, microseconds.
    pub us: f64,
    /// Stages that the node reports, microseconds. Empty for the floor.
    pub stages: Vec<(String, f64)>,
}

/// Why a request does not count.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer.
    #[error("no answer")]
    Exchange(#[from] ExchangeError),
    /// The node refused, or the function failed.
    #[error("status {status}{}: {body}", function_error.as_deref().map(|kind| format!(", function error {kind}")).unwrap_or_default())]
    Refused {
        /// HTTP status.
        status: u16,
        /// `X-Amz-Function-Error`.
        function_error: Option<String>,
        /// Beginning of the answer.
        body: String,
    },
    /// The node took another path than asked for.
    #[error("asked for boot path {asked}, got {got:?}")]
    OtherPath {
        /// What was asked.
        asked: &'static str,
        /// What the node says.
        got: Option<String>,
    },
    /// The answer carries no memory figures.
    #[error("the answer has no memory figures (x-rouse-memory)")]
    NoMemory,
}

/// A client of one function.
#[derive(Debug)]
pub struct Caller {
    endpoint: Endpoint,
    connection: Connection,
    path: String,
}

impl Caller {
    /// Connects to the node.
    pub fn open(endpoint: &Endpoint, function: &str) -> Result<Self, ExchangeError> {
        Ok(Self {
            endpoint: endpoint.clone(),
            connection: Connection::open(endpoint)?,
            path: invocation_path(function),
        })
    }

    /// One request on the boot path `boot`: its time and its answer.
    pub fn call(
        &mut self,
        boot: &'static str,
        event: &[u8],
    ) -> Result<(Sample, Vec<u8>), CallError> {
        let (mut us, mut response) = self.timed(boot, event)?;
        // With none that was rewound, one is restored, and rewound after its answer.
        for _ in 0..REWIND_ATTEMPTS {
            if boot != "rewind" || response.status == 200 {
                break;
            }
            self.timed("restore", event)?;
            std::thread::sleep(REWIND_REST);
            (us, response) = self.timed(boot, event)?;
        }
        // With no idle instance the node starts one, which idles afterwards: that was a warm-up, not a sample.
        for _ in 0..WARM_ATTEMPTS {
            if boot != "warm" || response.header("x-rouse-boot").as_deref() == Some("warm") {
                break;
            }
            (us, response) = self.timed(boot, event)?;
        }
        let response = check(boot, response)?;
        let timing = response
            .header("server-timing")
            .map(|text| parse_server_timing(&text))
            .unwrap_or_default();
        Ok((
            Sample {
                us,
                stages: timing
                    .into_iter()
                    .map(|(name, ms)| (name, ms * 1e3))
                    .collect(),
            },
            response.body,
        ))
    }

    fn timed(&mut self, boot: &str, event: &[u8]) -> Result<(f64, Response), ExchangeError> {
        let start = Instant::now();
        let response = self.exchange(&[("x-rouse-boot", boot)], event)?;
        Ok((start.elapsed().as_secs_f64() * 1e6, response))
    }

    /// One request that also measures the instance's memory after it has answered; the measuring takes time, so
    /// the request is not timed.
    pub fn measure(
        &mut self,
        boot: &'static str,
        event: &[u8],
    ) -> Result<(InstanceMemory, Vec<u8>), CallError> {
        let headers = [("x-rouse-boot", boot), ("x-rouse-measure", "memory")];
        for _ in 0..MEASURING_ATTEMPTS {
            let response = self.exchange(&headers, event)?;
            if boot == "warm" && response.header("x-rouse-boot").as_deref() == Some("cold") {
                continue;
            }
            let response = check(boot, response)?;
            let memory = response.header("x-rouse-memory");
            if let Some(memory) = memory.and_then(|text| InstanceMemory::parse(&text)) {
                return Ok((memory, response.body));
            }
        }
        Err(CallError::NoMemory)
    }

    fn exchange(
        &mut self,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, ExchangeError> {
        let request = Request {
            method: "POST",
            path: &self.path,
            headers,
            body,
        };
        self.connection.exchange(&request).inspect_err(|_| {
            // The connection may be in the middle of an answer. The next request gets a new one, if there is a node.
            if let Ok(fresh) = Connection::open(&self.endpoint) {
                self.connection = fresh;
            }
        })
    }
}

/// At several requests in flight, other requests may take the instance that was just warmed up.
const WARM_ATTEMPTS: usize = 20;
/// Requests that try to find an instance that was rewound.
const REWIND_ATTEMPTS: usize = 10;
/// How long after an answer one is looked for.
const REWIND_REST: std::time::Duration = std::time::Duration::from_millis(20);

/// On a busy node a clone may answer before the node has heard its pid, and then cannot be measured.
const MEASURING_ATTEMPTS: usize = 5;

/// KiB in a page.
const PAGE_KIB: u64 = 4;

/// Memory of an instance, as the node measures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InstanceMemory {
    /// As for any process.
    pub memory: Memory,
    /// Pages of pool and files that it maps and has not copied.
    pub shared_pages: u64,
    /// Pages that it has copied.
    pub private_pages: u64,
}

impl InstanceMemory {
    /// Reads `pss_kib=1;uss_kib=2;...`, in any order, with members that are not known.
    pub fn parse(text: &str) -> Option<Self> {
        let get = |name: &str| {
            let member = text
                .split(';')
                .find_map(|member| member.trim().strip_prefix(name)?.strip_prefix('='));
            member?.trim().parse().ok()
        };
        Some(Self {
            memory: Memory {
                pss_kib: get("pss_kib")?,
                uss_kib: get("uss_kib")?,
                copied_kib: get("private_pages")? * PAGE_KIB,
                minor_faults: get("minor_faults")?,
            },
            shared_pages: get("shared_pages")?,
            private_pages: get("private_pages")?,
        })
    }
}

fn check(asked: &'static str, response: Response) -> Result<Response, CallError> {
    let function_error = response.header("x-amz-function-error");
    if response.status != 200 || function_error.is_some() {
        let body = String::from_utf8_lossy(&response.body)
            .chars()
            .take(300)
            .collect();
        return Err(CallError::Refused {
            status: response.status,
            function_error,
            body,
        });
    }
    let got = response.header("x-rouse-boot");
    if got.as_deref() == Some(asked) {
        Ok(response)
    } else {
        Err(CallError::OtherPath { asked, got })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_may_come_in_any_order() {
        let text = "uss_kib=20; pss_kib=30;minor_faults=4;shared_pages=5;private_pages=6;later=7";
        let memory = Memory {
            pss_kib: 30,
            uss_kib: 20,
            copied_kib: 24,
            minor_faults: 4,
        };
        assert_eq!(
            InstanceMemory::parse(text),
            Some(InstanceMemory {
                memory,
                shared_pages: 5,
                private_pages: 6
            })
        );
        assert_eq!(InstanceMemory::parse("pss_kib=1"), None);
    }
}
