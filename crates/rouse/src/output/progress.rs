//! Progress on standard error: bars on a terminal, one line per step elsewhere.

use std::fmt::Display;
use std::time::Duration;

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Progress of a command with several steps.
#[derive(Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
}

/// One step: a spinner or a bar. Dropped without [`Step::done`], it vanishes.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    bars: Option<MultiProgress>,
    quiet: bool,
    label: String,
}

impl Progress {
    /// Progress on standard error, none when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bars = (!quiet && console::user_attended_stderr()).then(MultiProgress::new);
        Self { bars, quiet }
    }

    /// A step of unknown length.
    pub fn spinner(&self, label: impl Into<String>) -> Step {
        let label = label.into();
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(template(
                ProgressStyle::default_spinner(),
                "{spinner:.cyan} {msg} {elapsed:.dim}",
            ));
            bar.set_message(label.clone());
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Step {
            bar,
            bars: self.bars.clone(),
            quiet: self.quiet,
            label,
        }
    }

    /// A step of `length` parts.
    pub fn bar(&self, label: impl Into<String>, length: u64) -> Step {
        let label = label.into();
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(length));
            let style = template(
                ProgressStyle::default_bar(),
                "{spinner:.cyan} {msg} {bar:30.cyan/black.dim} {pos}/{len} {elapsed:.dim}",
            );
            bar.set_style(style.progress_chars("━━ "));
            bar.set_message(label.clone());
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Step {
            bar,
            bars: self.bars.clone(),
            quiet: self.quiet,
            label,
        }
    }
}

impl Step {
    /// Says what the step does now.
    pub fn message(&self, text: impl Display) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} ({text})", self.label));
        }
    }

    /// One more part is done.
    pub fn advance(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Ends the step with a line that stays.
    pub fn done(self, result: impl Display) {
        self.end(style("✔").green().for_stderr(), result);
    }

    /// Ends the step with a line that stays and warns.
    pub fn warn(self, result: impl Display) {
        self.end(style("!").yellow().bold().for_stderr(), result);
    }

    fn end(self, mark: impl Display, result: impl Display) {
        let line = format!("{mark} {}: {result}", self.label);
        match (&self.bar, &self.bars) {
            (Some(bar), Some(bars)) => {
                bar.finish_and_clear();
                // A terminal that went away takes the line with it; the step is done all the same.
                let _ = bars.println(line);
            }
            _ if self.quiet => {}
            _ => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn template(style: ProgressStyle, text: &'static str) -> ProgressStyle {
    style
        .template(text)
        .expect("the template is a constant that the library accepts")
}
