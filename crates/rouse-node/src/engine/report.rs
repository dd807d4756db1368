//! How an invocation ended, in Lambda's words: the error that the caller sees and the lines of the log.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use rouse_process::instance::ExitReason;

use super::runner::Ended;
use crate::metrics::counters::ErrorKind;
use crate::runtime_api::routes::MAX_RESPONSE;
use crate::runtime_api::session::RuntimeAnswer;

/// What the caller gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Body.
    pub payload: Bytes,
    /// Type of the error, `None` for a success.
    pub error_type: Option<String>,
    /// Who or what ended it, `None` for a success.
    pub error_kind: Option<ErrorKind>,
    /// A line for the log, beside START, END and REPORT.
    pub note: Option<String>,
}

/// Turns an end into an answer. `BootFailed` is the platform's fault; its caller decides what to do instead.
pub fn verdict(
    ended: Ended,
    request_id: &str,
    timeout: Duration,
    start_limit: Duration,
) -> Verdict {
    let error_kind = error_kind(&ended);
    let verdict = match ended {
        Ended::Answer(RuntimeAnswer::Response { body, .. }) => Verdict {
            payload: body,
            error_type: None,
            error_kind,
            note: None,
        },
        Ended::Answer(RuntimeAnswer::Error(error))
        | Ended::InitFailed(error)
        | Ended::RestoreFailed(error) => Verdict {
            payload: error.body,
            error_type: Some(error.error_type),
            error_kind,
            note: None,
        },
        Ended::Answer(RuntimeAnswer::TooLarge) => {
            let kind = "Function.ResponseSizeTooLarge";
            let message = format!(
                "Response payload size exceeded maximum allowed payload size ({MAX_RESPONSE} bytes)."
            );
            error(kind, &message, None)
        }
        Ended::TimedOut => timed_out(request_id, timeout),
        Ended::InitTimedOut | Ended::RestoreTimedOut => timed_out(request_id, start_limit),
        Ended::Exited(reason) => {
            let text = exit_text(&reason);
            let kind = match reason {
                ExitReason::OutOfMemory => "Runtime.OutOfMemory",
                ExitReason::Code(_) | ExitReason::Signal(_) | ExitReason::Machine(_) => {
                    "Runtime.ExitError"
                }
            };
            let note = format!("RequestId: {request_id} Error: {text}\n{kind}");
            error(
                kind,
                &format!("RequestId: {request_id} Error: {text}"),
                Some(note),
            )
        }
        Ended::BootFailed(reason) => error(
            "Sandbox.Failure",
            &format!("RequestId: {request_id} Error: {reason}"),
            None,
        ),
    };
    Verdict {
        error_kind,
        ..verdict
    }
}

fn error_kind(ended: &Ended) -> Option<ErrorKind> {
    Some(match ended {
        Ended::Answer(RuntimeAnswer::Response { .. }) => return None,
        Ended::Answer(RuntimeAnswer::Error(_)) => ErrorKind::Handler,
        Ended::Answer(RuntimeAnswer::TooLarge) => ErrorKind::Response,
        Ended::InitFailed(_) | Ended::RestoreFailed(_) => ErrorKind::Init,
        Ended::TimedOut | Ended::InitTimedOut | Ended::RestoreTimedOut => ErrorKind::Timeout,
        Ended::Exited(ExitReason::OutOfMemory) => ErrorKind::Memory,
        Ended::Exited(_) => ErrorKind::Exit,
        Ended::BootFailed(_) => ErrorKind::Platform,
    })
}

fn timed_out(request_id: &str, timeout: Duration) -> Verdict {
    let text = format!("Task timed out after {:.2} seconds", timeout.as_secs_f64());
    let note = format!(
        "{} {request_id} {text}",
        crate::time::rfc3339_ms(crate::function::record::now_ms())
    );
    error(
        "Sandbox.Timedout",
        &format!("RequestId: {request_id} Error: {text}"),
        Some(note),
    )
}

fn error(kind: &str, message: &str, note: Option<String>) -> Verdict {
    let payload = serde_json::json!({ "errorType": kind, "errorMessage": message })
        .to_string()
        .into();
    Verdict {
        payload,
        error_type: Some(kind.to_owned()),
        error_kind: None,
        note,
    }
}

/// How a runtime's exit is told, as Lambda does (whose runtime host is written in Go).
pub fn exit_text(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Code(0) => "Runtime exited without providing a reason".into(),
        ExitReason::Code(code) => format!("Runtime exited with error: exit status {code}"),
        ExitReason::Signal(signal) => format!(
            "Runtime exited with error: signal: {}",
            signal_name(*signal)
        ),
        ExitReason::OutOfMemory => "Runtime exited with error: signal: killed".into(),
        ExitReason::Machine(how) => format!("Runtime exited with error: {how}"),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        31 => "bad system call",
        other => return format!("signal {other}"),
    };
    name.into()
}

/// What goes into REPORT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a> {
    /// Request id.
    pub request_id: &'a str,
    /// From delivery to answer.
    pub duration: Duration,
    /// MiB, configured.
    pub memory_mib: u32,
    /// Bytes, at most.
    pub peak_bytes: u64,
    /// Start of a cold instance until it asked for work.
    pub init: Option<Duration>,
    /// Start of a restored or forked instance until it took the event.
    pub restore: Option<Duration>,
    /// Type of the error.
    pub error_type: Option<&'a str>,
}

impl Report<'_> {
    /// The END and REPORT lines.
    pub fn lines(&self) -> [String; 2] {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        let mut report = format!(
            "REPORT RequestId: {}\tDuration: {:.2} ms\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {} MB\t",
            self.request_id,
            ms(self.duration),
            self.duration.as_micros().div_ceil(1000),
            self.memory_mib,
            self.peak_bytes.div_ceil(1 << 20),
        );
        // Writing to a string cannot fail.
        if let Some(init) = self.init {
            let _ = write!(report, "Init Duration: {:.2} ms\t", ms(init));
        }
        if let Some(restore) = self.restore {
            let billed = restore.as_micros().div_ceil(1000);
            let _ = write!(
                report,
                "Restore Duration: {:.2} ms\tBilled Restore Duration: {billed} ms\t",
                ms(restore)
            );
        }
        match self.error_type {
            Some("Sandbox.Timedout") => report.push_str("Status: timeout"),
            Some(kind) if kind.starts_with("Runtime.") || kind.starts_with("Sandbox.") => {
                let _ = write!(report, "Status: error\tError Type: {kind}");
            }
            _ => {}
        }
        [format!("END RequestId: {}", self.request_id), report]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ended: Ended) -> String {
        let verdict = verdict(ended, "id", Duration::from_secs(1), Duration::from_secs(10));
        String::from_utf8(verdict.payload.to_vec()).unwrap()
    }

    #[test]
    fn errors_are_lambda_s_to_the_byte() {
        let message = |ended| {
            serde_json::from_str::<serde_json::Value>(&text(ended)).unwrap()["errorMessage"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            message(Ended::TimedOut),
            "RequestId: id Error: Task timed out after 1.00 seconds"
        );
        assert_eq!(
            message(Ended::Exited(ExitReason::Code(0))),
            "RequestId: id Error: Runtime exited without providing a reason"
        );
        assert_eq!(
            message(Ended::Exited(ExitReason::Code(3))),
            "RequestId: id Error: Runtime exited with error: exit status 3"
        );
        assert_eq!(
            message(Ended::Exited(ExitReason::OutOfMemory)),
            "RequestId: id Error: Runtime exited with error: signal: killed"
        );
        assert_eq!(
            message(Ended::Answer(RuntimeAnswer::TooLarge)),
            "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
        );
    }

    #[test]
    fn the_report_line_is_lambda_s() {
        let report = Report {
            request_id: "id",
            duration: Duration::from_micros(2100),
            memory_mib: 128,
            peak_bytes: 38 << 20,
            init: Some(Duration::from_micros(120_100)),
            restore: None,
            error_type: None,
        };
        assert_eq!(
            report.lines(),
            [
                "END RequestId: id".to_owned(),
                "REPORT RequestId: id\tDuration: 2.10 ms\tBilled Duration: 3 ms\tMemory Size: 128 MB\tMax Memory Used: 38 MB\tInit Duration: 120.10 ms\t"
                    .to_owned(),
            ]
        );
    }
}
