//! CPU time and memory of a process, as reported by Linux. The fan-out benchmark uses this file too.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};

/// Unit of `utime` and `stime`: Linux reports hundredths of a second to user space, whatever the kernel's own tick.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// The CPU time of a process at one moment.
pub struct CpuTime {
    /// Nanoseconds on a CPU by thread id: exact, but the count of a thread is lost when the thread ends.
    threads: HashMap<String, u64>,
    /// CPU time of the whole process with its ended threads, in coarse ticks.
    total: Duration,
}

impl CpuTime {
    pub fn of(pid: u32) -> Result<Self> {
        let mut threads = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| gone(pid))? {
            let entry = entry?;
            // A thread may end between the listing and the reading.
            let Ok(schedstat) = fs::read_to_string(entry.path().join("schedstat")) else {
                continue;
            };
            let on_cpu = schedstat
                .split_whitespace()
                .next()
                .context("/proc/<pid>/task/<tid>/schedstat is empty")?
                .parse()?;
            threads.insert(entry.file_name().to_string_lossy().into_owned(), on_cpu);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| gone(pid))?;
        // The command name may hold spaces; the fields after its parenthesis do not. utime and stime are the 12th and
        // 13th of those.
        let (_, fields) = stat
            .rsplit_once(')')
            .context("/proc/<pid>/stat has an unexpected format")?;
        let ticks = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u32>)
            .sum::<Result<u32, _>>()?;
        Ok(Self {
            threads,
            total: CLOCK_TICK * ticks,
        })
    }

    pub fn since(&self, earlier: &Self) -> Duration {
        if earlier.threads.keys().any(|thread| !self.threads.contains_key(thread)) {
            return self.total - earlier.total;
        }
        let spent = self
            .threads
            .iter()
            .map(|(thread, now)| now.saturating_sub(*earlier.threads.get(thread).unwrap_or(&0)))
            .sum();
        Duration::from_nanos(spent)
    }
}

/// Returns `VmRSS` in bytes.
pub fn resident_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| gone(pid))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS in /proc/<pid>/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

fn gone(pid: u32) -> String {
    format!("--pid {pid}: cannot read this process; give the id of a server process on this Linux machine")
}
