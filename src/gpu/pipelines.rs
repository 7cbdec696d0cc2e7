//! Compiled pipelines: one for each shader, in memory, and on disk for the next process where the driver gives them out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::gpu_device::{Gpu, lock};
use crate::cache::{Cache, replace};
use crate::error::Result;
use crate::shader::Shader;

/// The pipelines of a device. Each has a lock of its own, so that those of several shaders are compiled at once.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    of_shader: Mutex<HashMap<Shader, Arc<Mutex<Option<wgpu::ComputePipeline>>>>>,
    file: Option<CacheFile>,
}

/// The driver's cache and the file that it comes from and goes to.
#[derive(Debug)]
struct CacheFile {
    path: PathBuf,
    cache: wgpu::PipelineCache,
}

impl Pipelines {
    /// None yet, but what the file holds that this adapter's driver wrote. A file that cannot be read, is damaged or is of another
    /// driver counts as empty.
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device, cache: &Cache) -> Self {
        let key = wgpu::util::pipeline_cache_key(&adapter.get_info());
        let kept = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let path = cache.folder("pipelines").zip(key).map(|(folder, key)| folder.join(key)).filter(|_| kept);
        let file = path.map(|path| {
            let data = fs::read(&path).ok();
            let data = data.as_deref().and_then(unsealed);
            let descriptor = wgpu::PipelineCacheDescriptor { label: Some("regard"), data, fallback: true };
            #[expect(unsafe_code, reason = "drivers trust what they are given")]
            // SAFETY: the bytes are as `PipelineCache::get_data` returned them, or their checksum would be another; wgpu
            // compares the adapter and the driver in their head.
            let cache = unsafe { device.create_pipeline_cache(&descriptor) };
            CacheFile { path, cache }
        });
        Self { of_shader: Mutex::default(), file }
    }
}

impl Gpu {
    /// Compiles what of these is not compiled yet, on as many threads as there are.
    pub(super) fn compile<'a>(&self, shaders: impl Iterator<Item = &'a Shader>) -> Result<()> {
        let missing: HashSet<&Shader> = {
            let known = lock(&self.pipelines.of_shader);
            shaders.filter(|shader| !known.contains_key(shader)).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        missing.into_par_iter().try_for_each(|shader| self.pipeline(shader).map(drop))?;
        if let Some(file) = &self.pipelines.file {
            // Without the file the next process compiles them again, and nothing else changes.
            let _ = file.cache.get_data().map_or(Ok(()), |data| replace(&file.path, &sealed(&data)));
        }
        Ok(())
    }

    /// Those that plans hold stay with them.
    pub fn forget_pipelines(&self) {
        lock(&self.pipelines.of_shader).clear();
    }

    /// The pipeline of a shader, compiled at its first use.
    pub(super) fn pipeline(&self, shader: &Shader) -> Result<wgpu::ComputePipeline> {
        let slot = lock(&self.pipelines.of_shader).entry(shader.clone()).or_default().clone();
        let mut slot = lock(&slot);
        if let Some(pipeline) = &*slot {
            return Ok(pipeline.clone());
        }
        let text = shader.text()?;
        let pipeline = self.scoped(|| {
            let module = self.module(shader.main.name, &text);
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.main.name),
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Kernels write workgroup memory before they read it.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.pipelines.file.as_ref().map(|file| &file.cache),
            })
        })?;
        Ok(slot.insert(pipeline).clone())
    }
}

/// What a file begins with; the checksum of the rest follows.
const HEAD: &[u8] = b"regard pipelines 1\n";

fn checksum(data: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish().to_le_bytes()
}

fn sealed(data: &[u8]) -> Vec<u8> {
    [HEAD, &checksum(data), data].concat()
}

/// The data of a file, if it is whole.
fn unsealed(file: &[u8]) -> Option<&[u8]> {
    let (sum, data) = file.strip_prefix(HEAD)?.split_first_chunk()?;
    (*sum == checksum(data)).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_count_as_empty() {
        let whole = sealed(b"of a driver");
        assert_eq!(unsealed(&whole), Some(&b"of a driver"[..]));
        assert_eq!(unsealed(&sealed(b"")), Some(&b""[..]));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(unsealed(&damaged), None, "byte {at}");
            assert_eq!(unsealed(&whole[..at]), None, "{at} bytes");
        }
    }
}
