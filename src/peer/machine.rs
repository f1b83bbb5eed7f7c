//! How busy this machine is, as Linux tells it; 0 where it does not.

use std::fs;

/// Load at one moment, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Load {
    pub(super) cpu_percent: f32,
    pub(super) mem_percent: f32,
}

/// Remembers the last reading, because the processor's load is a difference.
#[derive(Debug)]
pub(super) struct Machine {
    cpu: Option<CpuTime>,
}

/// Ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTime {
    busy: u64,
    total: u64,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self { cpu: read_cpu() }
    }

    /// Processor load since the last call, and memory in use now.
    pub(super) fn load(&mut self) -> Load {
        let now = read_cpu();
        let cpu_percent = match (self.cpu, now) {
            (Some(before), Some(now)) => busy_percent(before, now),
            _ => 0.0,
        };
        self.cpu = now.or(self.cpu);
        let memory = read_memory();
        Load { cpu_percent, mem_percent: memory.map_or(0.0, |(used, total)| used / total * 100.0) }
    }

    pub(super) fn cpu_cores(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    pub(super) fn memory_gb(&self) -> u64 {
        read_memory().map_or(0, |(_, total_kb)| (total_kb / (1024.0 * 1024.0)).round() as u64)
    }
}

fn read_cpu() -> Option<CpuTime> {
    parse_cpu(&fs::read_to_string("/proc/stat").ok()?)
}

fn read_memory() -> Option<(f32, f32)> {
    parse_memory(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// First line of `/proc/stat`: user nice system idle iowait irq softirq steal.
fn parse_cpu(stat: &str) -> Option<CpuTime> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = fields.take(8).map(|f| f.parse().unwrap_or(0)).collect();
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    let total: u64 = ticks.iter().sum();
    Some(CpuTime { busy: total.saturating_sub(idle), total })
}

fn busy_percent(before: CpuTime, now: CpuTime) -> f32 {
    let total = now.total.saturating_sub(before.total);
    let busy = now.busy.saturating_sub(before.busy).min(total);
    if total == 0 { 0.0 } else { (busy as f32 / total as f32) * 100.0 }
}

/// Used and total kB of `/proc/meminfo`.
fn parse_memory(meminfo: &str) -> Option<(f32, f32)> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f32>().ok()
    };
    let total = field("MemTotal:").filter(|total| *total > 0.0)?;
    Some(((total - field("MemAvailable:")?).max(0.0), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_the_difference_of_two_readings() {
        let before = parse_cpu("cpu  100 0 100 700 100 0 0 0 9 9\ncpu0 1").unwrap();
        assert_eq!(before, CpuTime { busy: 200, total: 1000 });
        let now = CpuTime { busy: 230, total: 1040 };
        assert!((busy_percent(before, now) - 75.0).abs() < 1e-3);
        assert_eq!(busy_percent(now, now), 0.0);
        assert_eq!(busy_percent(now, before), 0.0);
        assert_eq!(parse_cpu("intr 5"), None);
    }

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let text = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   250 kB\n";
        assert_eq!(parse_memory(text), Some((750.0, 1000.0)));
        assert_eq!(parse_memory("MemTotal: 0 kB\nMemAvailable: 0 kB"), None);
        assert_eq!(parse_memory(""), None);
    }
}
