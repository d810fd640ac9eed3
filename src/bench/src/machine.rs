//! What the kernel tells of processes and of this machine, from `/proc`. Knows no server.

use std::fs;
use std::io;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// A process rests when it uses less CPU than this in a second.
const REST: f64 = 0.03;
/// How long one may take to come to rest.
const PATIENCE: Duration = Duration::from_mins(10);

/// Clock ticks a second in `/proc/<pid>/stat`: `USER_HZ`, which Linux fixes at 100 for all programs.
const TICKS: f64 = 100.0;

/// CPU seconds (user and system, ended threads included) of a process and its living descendants; 0 for
/// one that is gone. To the tick of 10 ms: measure over seconds.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    tree(pid).iter().filter_map(|pid| stat(*pid)).map(|stat| stat.ticks).sum::<u64>() as f64 / TICKS
}

/// Waits until a process and its descendants rest, and gives the CPU seconds that they have used by then; `None`
/// where they are still at work after ten minutes.
pub(crate) fn at_rest(pid: u32) -> Option<f64> {
    let start = Instant::now();
    let mut last = cpu_seconds(pid);
    while start.elapsed() < PATIENCE {
        // a second is the measure: at rest is who used next to no CPU in one
        thread::sleep(Duration::from_secs(1));
        let now = cpu_seconds(pid);
        if now - last < REST {
            return Some(now);
        }
        last = now;
    }
    None
}

/// Resident memory of a process and its living descendants, MB (10^6 bytes). Pages that they share count
/// for each.
pub(crate) fn rss_mb(pid: u32) -> f64 {
    tree(pid).iter().map(|pid| status_mb(*pid, "VmRSS:")).sum()
}

/// The most that was resident of one process since [`forget_peak`], or since it began, MB (10^6 bytes).
pub(crate) fn peak_mb(pid: u32) -> f64 {
    status_mb(pid, "VmHWM:")
}

/// Lets the peak of a process count from now on (`man 5 proc_pid_clear_refs`).
pub(crate) fn forget_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// A line of `/proc/<pid>/status` in kB as MB; 0 for a process that is gone.
fn status_mb(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_default() * 1024.0 / 1e6
}

struct Stat {
    parent: u32,
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `man 5 proc_pid_stat`: the command may hold spaces and parentheses, so the fields count from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat { parent: number(1)? as u32, ticks: number(11)? + number(12)? })
}

/// The process and all that descend from it.
fn tree(root: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = pids
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

/// Processor, cores, memory and kernel, for the head of a report.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let cpu = read("/proc/cpuinfo");
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let kb: f64 = field(&read("/proc/meminfo"), "MemTotal").split(' ').next().unwrap_or("0").parse().unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{}, {cores} cores, {:.0} GB of memory, Linux {}",
        field(&cpu, "model name"),
        kb * 1024.0 / 1e9,
        kernel.trim()
    )
}

/// The first line that a command prints, or why there is none.
pub(crate) fn first_line(command: &str, arguments: &[&str]) -> String {
    match Command::new(command).args(arguments).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned(),
        Err(error) => format!("{command}: {error}"),
    }
}

/// The mean number of processes that wanted to run in the last minute: what else the machine was doing.
pub(crate) fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = parse_stat("77 (a (b) c) S 42 77 77 0 -1 4194304 500 0 0 0 130 25 7 9 20 0 1").expect("is a stat");
        assert_eq!((stat.parent, stat.ticks), (42, 155), "children that were waited for do not count");
        assert!(parse_stat("77 no name").is_none());
    }

    #[test]
    fn the_cpu_of_a_busy_process_grows_and_a_child_counts() {
        let me = std::process::id();
        let before = cpu_seconds(me);
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh starts");
        let own = child.id();
        while cpu_seconds(own) < 0.05 {}
        let both = cpu_seconds(me);
        child.kill().expect("is ours");
        child.wait().expect("ends");
        assert!(both >= before + 0.05, "{before} then {both}");
        assert!(rss_mb(me) > 1.0);
        forget_peak(me).expect("a process may forget its own peak");
        assert!(peak_mb(me) > 1.0);
    }
}
