//! How long runs and steps take, by timestamps that the GPU writes, or by the host's clock where there are none.

use std::sync::Arc;
use std::time::Instant;

use super::gpu_device::{Gpu, GpuBuffer};
use super::program::GpuProgram;
use super::readback::Staging;
use crate::error::Result;
use crate::timing::{Clock, Sample};

/// Queries for the beginning and end of each step.
#[derive(Debug)]
pub(super) struct Timer {
    queries: wgpu::QuerySet,
    resolved: GpuBuffer,
    readback: Arc<Staging>,
}

impl Timer {
    fn new(gpu: &Gpu, passes: u32) -> Result<Self> {
        let count = 2 * passes.max(1);
        let bytes = 8 * u64::from(count);
        let queries = gpu.scoped(|| {
            let ty = wgpu::QueryType::Timestamp;
            gpu.device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("regard timer"), ty, count })
        })?;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.create_buffer("regard timer", bytes, usage)?;
        let readback = Staging::new(gpu, "regard timer readback", bytes)?;
        Ok(Self { queries, resolved, readback })
    }
}

impl GpuProgram {
    /// One run in one pass.
    pub fn measure(&mut self) -> Result<Sample> {
        if !self.gpu.capabilities().timestamps {
            self.gpu.wait()?;
            let start = Instant::now();
            self.submit()?;
            self.gpu.wait()?;
            return Ok(Sample { seconds: start.elapsed().as_secs_f64(), clock: Clock::HostNoTimestamps });
        }
        let all = 0..self.steps.len();
        let seconds = self.timed(std::slice::from_ref(&all))?.remove(0);
        Ok(Sample { seconds, clock: Clock::Gpu })
    }

    /// One run with a pass for each step, or, without timestamps, a submission for each step.
    pub fn profile(&mut self) -> Result<(Vec<f64>, Clock)> {
        let each: Vec<_> = (0..self.steps.len()).map(|step| step..step + 1).collect();
        if self.gpu.capabilities().timestamps {
            return Ok((self.timed(&each)?, Clock::Gpu));
        }
        self.submit_recorded(|_, _| {})?;
        let mut seconds = Vec::with_capacity(each.len());
        for step in each {
            self.gpu.wait()?;
            let start = Instant::now();
            self.submit_recorded(|program, encoder| program.record_pass(encoder, step, None))?;
            self.gpu.wait()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok((seconds, Clock::HostNoTimestamps))
    }

    /// Seconds of each pass, a pass being a range of steps.
    fn timed(&mut self, passes: &[std::ops::Range<usize>]) -> Result<Vec<f64>> {
        if passes.is_empty() {
            return Ok(Vec::new());
        }
        let timer = match self.timer.take() {
            Some(timer) => timer,
            None => Timer::new(&self.gpu, u32::try_from(self.steps.len()).expect("steps fit 32 bits"))?,
        };
        let bytes = 16 * passes.len() as u64;
        let staging = timer.readback.clone();
        let readback = self.submit_and_map(&staging, |program, encoder| {
            for (range, query) in passes.iter().zip((0..).step_by(2)) {
                program.record_pass(encoder, range.clone(), Some((&timer.queries, query)));
            }
            encoder.resolve_query_set(&timer.queries, 0..2 * passes.len() as u32, &timer.resolved.0, 0);
            encoder.copy_buffer_to_buffer(&timer.resolved.0, 0, &staging.buffer.0, 0, bytes);
        })?;
        readback.wait()?;
        let ticks: Vec<u64> = readback.look(&(0..bytes), |bytes| Ok(bytemuck::pod_collect_to_vec(bytes)))?;
        self.timer = Some(timer);
        let period = f64::from(self.gpu.queue.get_timestamp_period()) * 1e-9;
        Ok(ticks.chunks_exact(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period).collect())
    }

    fn record_pass(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        steps: std::ops::Range<usize>,
        queries: Option<(&wgpu::QuerySet, u32)>,
    ) {
        let timestamp_writes = queries.map(|(query_set, first)| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some("regard timed"), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        self.steps[steps].iter().for_each(|step| step.record(&mut pass));
    }
}
