//! The device's own copy of one buffer onto another, timed.

use std::time::Instant;

use super::gpu_device::{Gpu, GpuBuffer};
use crate::error::Result;

impl Gpu {
    /// Seconds until so many copies of one buffer onto another, of the same size, are done, all in one submission. By the host's
    /// clock: timestamps outside a pass are a feature that few devices have.
    pub(crate) fn time_copies(&self, from: &GpuBuffer, to: &GpuBuffer, copies: u32) -> Result<f64> {
        self.check_owner(from)?;
        self.check_owner(to)?;
        self.wait()?;
        let start = Instant::now();
        self.scoped(|| {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            for _ in 0..copies {
                encoder.copy_buffer_to_buffer(&from.0, 0, &to.0, 0, from.0.size());
            }
            self.submit(encoder.finish());
        })?;
        self.wait()?;
        Ok(start.elapsed().as_secs_f64())
    }
}
