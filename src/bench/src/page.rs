//! What the reports' pages have in common: their head, the table of bars, what failed. Knows no measurement.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::figures::{Figure, Figures, number};
use crate::machine;
use crate::process::PACKAGES;

/// Something that must hold.
pub(crate) struct Bar {
    pub(crate) what: String,
    /// At least this, or at most.
    at_least: bool,
    limit: f64,
    seen: Option<Figure>,
}

impl Bar {
    pub(crate) fn at_least(what: &str, limit: f64, seen: Option<Figure>) -> Self {
        Self { what: what.to_owned(), at_least: true, limit, seen }
    }

    pub(crate) fn at_most(what: &str, limit: f64, seen: Option<Figure>) -> Self {
        Self { what: what.to_owned(), at_least: false, limit, seen }
    }

    /// Whether the median reaches the bar; not where nothing was measured.
    fn verdict(&self) -> &'static str {
        match self.seen {
            None => "not measured",
            Some(seen) if self.at_least && seen.median >= self.limit => "passed",
            Some(seen) if !self.at_least && seen.median <= self.limit => "passed",
            Some(_) => "**missed**",
        }
    }
}

/// A figure, or a dash where there is none.
pub(crate) fn cell(figure: Option<Figure>) -> String {
    figure.map_or_else(|| "–".into(), |f| f.to_string())
}

/// The table of bars.
pub(crate) fn table(bars: &[Bar]) -> String {
    let mut out = "| measure | measured | bar | |\n|---|---|---|---|\n".to_owned();
    for bar in bars {
        let word = if bar.at_least { "at least" } else { "at most" };
        let _ =
            writeln!(out, "| {} | {} | {word} {} | {} |", bar.what, cell(bar.seen), number(bar.limit), bar.verdict());
    }
    out
}

/// How the numbers came about: command, time, machine, versions (that of the measured binary as it says it), and what
/// the report adds.
pub(crate) fn head(out: &mut String, larder: &Path, command: &str, load: &str, more: &[String]) {
    let date = machine::first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
    let version = machine::first_line(&larder.display().to_string(), &["--version"]);
    let lines = [
        format!("command: `{command}`"),
        format!("when: {date}; load of the machine before the run: {load}"),
        format!("machine: {}", machine::describe()),
        format!("versions: {version}, {}", machine::first_line("rustc", &["--version"])),
    ];
    for line in lines.iter().chain(more) {
        let _ = writeln!(out, "- {line}");
    }
}

/// The versions of Python packages, of the environment or beside the data in `work`.
pub(crate) fn versions(venv: &Path, work: &Path, packages: &[&str]) -> String {
    let program = "import importlib.metadata as m, sys; print(', '.join([f'{p} {m.version(p)}' for p in sys.argv[1:]] \
                   + ['Python ' + sys.version.split()[0]]))";
    let python = venv.join("bin/python");
    let mut command = Command::new(&python);
    command.env("PYTHONPATH", work.join(PACKAGES)).args(["-c", program]).args(packages);
    match command.output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => format!("{}: {error}", python.display()),
    }
}

/// What could not be measured, if anything.
pub(crate) fn failures(out: &mut String, figures: &Figures) {
    if figures.failures.is_empty() {
        return;
    }
    out.push_str("What could not be measured:\n\n");
    for (place, why) in &figures.failures {
        let _ = writeln!(out, "- {place}: {}", why.replace('\n', " "));
    }
    out.push('\n');
}
