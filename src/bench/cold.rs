//! Caches that hold nothing of a run's data when it begins, as when a model runs other layers in between.
//!
//! Between runs, outside of the timed part, memory is overwritten that is larger than the caches. On the host's cores, of
//! the CPU backend and of software devices alike, every thread overwrites its share of twice the last-level cache. On a GPU
//! a kernel copies one buffer of 128 MiB onto another, together five times the second-level cache of an H100.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::capabilities::Backend;
use crate::device::{Device, DeviceTensor};
use crate::error::Result;
use crate::graph::Graph;
use crate::plan::Plan;
use crate::tensor::HostTensor;

/// What a run finds in the caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheState {
    /// Nothing of its own: they are overwritten between runs.
    #[default]
    Cold,
    /// What the run before left there.
    Warm,
}

impl CacheState {
    /// As a line says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// Bytes of each of the two buffers on a GPU; every device binds as many.
pub(super) const DEVICE_BYTES: u64 = 128 << 20;

/// Bounds for the bytes on the host, of which the upper one is taken where the system does not tell its caches.
pub(super) const HOST_BYTES: [u64; 2] = [64 << 20, 512 << 20];

/// Overwrites what is cached.
#[derive(Debug)]
pub(super) enum Flush {
    /// A part for each thread.
    Host(Vec<Mutex<Vec<u64>>>),
    /// A copy on the device.
    Device(Box<Plan>),
    /// Caches stay warm.
    Nothing,
}

impl Flush {
    pub fn new(device: &Device, cache: CacheState) -> Result<Self> {
        let capabilities = device.capabilities();
        match (cache, capabilities.backend) {
            (CacheState::Warm, _) => Ok(Self::Nothing),
            (CacheState::Cold, Backend::Gpu) if !capabilities.software => {
                let bytes = DEVICE_BYTES.min(capabilities.binding_bytes);
                Ok(Self::Device(Box::new(copy(device, bytes)?)))
            }
            (CacheState::Cold, _) => {
                let threads = rayon::current_num_threads();
                let words = host_bytes() as usize / 8 / threads;
                Ok(Self::Host((0..threads).map(|_| Mutex::new(vec![0; words])).collect()))
            }
        }
    }

    /// Returns when all of it is overwritten.
    pub fn run(&mut self) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Device(plan) => plan.measure().map(drop),
            Self::Host(parts) => {
                rayon::broadcast(|thread| {
                    let mut part = parts[thread.index()].lock().unwrap_or_else(PoisonError::into_inner);
                    part.iter_mut().for_each(|word| *word = word.wrapping_add(1));
                });
                Ok(())
            }
        }
    }
}

/// What a copy copies: words that are not alike.
fn word(at: usize) -> u32 {
    (at as u32).wrapping_mul(2_654_435_761)
}

/// A plan that copies so many bytes onto others. Without staging: the value is a weight, and the target is no output.
pub(super) fn copy(device: &Device, bytes: u64) -> Result<Plan> {
    let mut graph = Graph::new();
    let words = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
    let value = HostTensor::u32(&[words], (0..words).map(word).collect())?;
    let desc = value.desc().clone();
    let value = graph.weight("value", Arc::new(value))?;
    let target = graph.input("target", desc)?;
    graph.assign(target, value)?;
    let mut plan = Plan::new(device, &graph)?;
    let target = plan.tensor("target")?;
    // It holds zeros, as good as anything else; writing them would take staging.
    plan.bind("target", &target)?;
    Ok(plan)
}

/// What is copied, and zeros to copy it onto.
pub(super) fn copied_tensors(device: &Device, bytes: u64) -> Result<(DeviceTensor, DeviceTensor)> {
    let words = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
    let upload = |word: fn(usize) -> u32| device.upload(&HostTensor::u32(&[words], (0..words).map(word).collect())?);
    Ok((upload(word)?, upload(|_| 0)?))
}

/// Whether a copy has copied onto this.
pub(super) fn copied(device: &Device, target: &DeviceTensor) -> Result<bool> {
    let target = device.download(target)?;
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(target.bytes());
    Ok(words.iter().enumerate().all(|(at, &found)| found == word(at)))
}

/// Twice the caches of the last level.
pub(super) fn host_bytes() -> u64 {
    let [least, most] = HOST_BYTES;
    last_level(Path::new("/sys/devices/system/cpu")).map_or(most, |bytes| (2 * bytes).clamp(least, most))
}

/// Bytes of all caches of the last level together; `None` where the system does not list them in `/sys`.
fn last_level(cpus: &Path) -> Option<u64> {
    let mut caches: BTreeMap<(u32, String), u64> = BTreeMap::new();
    for cpu in fs::read_dir(cpus).ok()?.flatten() {
        // Files beside the processors have no caches, and are no errors.
        for cache in fs::read_dir(cpu.path().join("cache")).into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(cache.path().join(name)).ok();
            let (Some(level), Some(size), Some(shared)) = (read("level"), read("size"), read("shared_cpu_list")) else {
                continue;
            };
            let (level, kib) = (level.trim().parse().ok(), size.trim().trim_end_matches('K').parse::<u64>().ok());
            if let (Some(level), Some(kib)) = (level, kib) {
                caches.insert((level, shared), kib << 10);
            }
        }
    }
    let last = caches.keys().map(|(level, _)| *level).max()?;
    Some(caches.iter().filter(|((level, _), _)| *level == last).map(|(_, bytes)| bytes).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_is_summed_over_its_caches() {
        let folder = std::env::temp_dir().join(format!("regard-caches-{}", std::process::id()));
        for (cpu, cache, [level, size, shared]) in [
            ("cpu0", "index0", ["1", "32K", "0"]),
            ("cpu0", "index3", ["3", "32768K", "0-1"]),
            ("cpu1", "index3", ["3", "32768K", "0-1"]),
            ("cpu2", "index3", ["3", "16384K", "2"]),
            ("cpufreq", "index3", ["what", "ever", "2"]),
        ] {
            let path = folder.join(cpu).join("cache").join(cache);
            fs::create_dir_all(&path).unwrap();
            for (name, text) in [("level", level), ("size", size), ("shared_cpu_list", shared)] {
                fs::write(path.join(name), format!("{text}\n")).unwrap();
            }
        }
        let found = last_level(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, Some(48 << 20));
        assert_eq!(last_level(&folder), None);
    }

    #[test]
    fn every_word_is_overwritten() {
        let mut flush = Flush::new(&Device::cpu(), CacheState::Cold).unwrap();
        flush.run().unwrap();
        let Flush::Host(parts) = flush else { panic!("the CPU's caches are the host's") };
        let parts: Vec<_> = parts.into_iter().map(|part| part.into_inner().unwrap()).collect();
        assert!(parts.iter().flatten().all(|&word| word == 1));
        let bytes = 8 * parts.iter().map(Vec::len).sum::<usize>() as u64;
        assert!(bytes + 8 * parts.len() as u64 > HOST_BYTES[0] && bytes <= HOST_BYTES[1], "{bytes}");
    }

    #[test]
    fn a_copy_runs_without_being_given_anything() {
        let device = Device::cpu();
        let mut plan = copy(&device, 4096).unwrap();
        assert!(!copied(&device, &plan.tensor("target").unwrap()).unwrap());
        plan.measure().unwrap();
        assert!(copied(&device, &plan.tensor("target").unwrap()).unwrap());
    }
}
