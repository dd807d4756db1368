//! What a machine says on its console, and what had been spent when it said so.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_vmm::devices::Output;
use serde::Serialize;

use super::meter::{Meter, Spent, Split};

/// What the kernel says last before it starts the first program.
const INIT_BEGINS: &str = "Run /init as init process";

/// Between two lines of the kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pause {
    /// Processor time until the next line, milliseconds.
    pub cpu_ms: f64,
    /// By the guest's own clock, milliseconds.
    pub guest_ms: f64,
    /// What it said before.
    pub after: String,
    /// What it said then.
    pub before: String,
}

/// A console. Clones are the same one.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    meter: Option<Meter>,
    line: String,
    lines: Vec<(Spent, String)>,
    init: Option<(Spent, Split)>,
}

impl Console {
    /// Measures from here on by `meter`.
    pub fn begin(&self, meter: Meter) {
        *self.lock() = Said {
            meter: Some(meter),
            ..Said::default()
        };
    }

    /// Where the machine writes to.
    pub fn output(&self) -> Output {
        Box::new(self.clone())
    }

    /// What had been spent when the first program was started, if the kernel has said so.
    pub fn init_began(&self) -> Option<(Spent, Split)> {
        self.lock().init
    }

    /// The `most` longest pauses between lines of the kernel, by processor time.
    pub fn pauses(&self, most: usize) -> Vec<Pause> {
        let said = self.lock();
        let mut pauses: Vec<Pause> = (said.lines.windows(2))
            .filter_map(|pair| {
                let [(before, first), (after, second)] = pair else {
                    return None;
                };
                let ((from, first), (to, second)) = (stamped(first)?, stamped(second)?);
                Some(Pause {
                    cpu_ms: after.cpu_ms - before.cpu_ms,
                    guest_ms: (to - from) * 1e3,
                    after: first.to_owned(),
                    before: second.to_owned(),
                })
            })
            .collect();
        pauses.sort_by(|a, b| b.cpu_ms.total_cmp(&a.cpu_ms));
        pauses.truncate(most);
        pauses
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `[    0.123456] text`, as the kernel writes it: seconds and the text.
fn stamped(line: &str) -> Option<(f64, &str)> {
    let (time, text) = line.strip_prefix('[')?.split_once(']')?;
    Some((time.trim().parse().ok()?, text.trim()))
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        /// A guest that says more is not listened to any longer, bytes and lines.
        const MOST: (usize, usize) = (4096, 10_000);
        let mut said = self.lock();
        for byte in bytes {
            if *byte != b'\n' {
                if said.line.len() < MOST.0 {
                    said.line.push(char::from(*byte));
                }
                continue;
            }
            let line = std::mem::take(&mut said.line);
            let Some(meter) = &said.meter else { continue };
            let spent = meter.read()?;
            if line.contains(INIT_BEGINS) {
                said.init = Some((spent, Split::now()?));
            }
            if said.lines.len() < MOST.1 {
                said.lines.push((spent, line.trim_end().to_owned()));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_between_lines_of_the_kernel() {
        let console = Console::default();
        console.begin(Meter::begin(&[]).expect("there is a clock"));
        let mut output = console.output();
        for text in [
            "[    0.000000] Linux\r\n[    0.1250",
            "00] ACPI\nhello\n[    9.000000] Run /init as init process\n[ ab",
        ] {
            output.write_all(text.as_bytes()).expect("it is taken");
        }
        let pauses = console.pauses(3);
        let [pause] = &pauses[..] else {
            panic!("{pauses:?}");
        };
        assert_eq!(
            (pause.guest_ms, pause.after.as_str(), pause.before.as_str()),
            (125.0, "Linux", "ACPI")
        );
        assert!(console.init_began().is_some());
    }
}
