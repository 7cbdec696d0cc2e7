//! Bytes on their way back to the host.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::gpu_device::{Gpu, GpuBuffer, lock};
use crate::error::{Error, Result};

/// A buffer that results are copied to and mapped from, one [`Readback`] after the other.
#[derive(Debug)]
pub(super) struct Staging {
    pub buffer: GpuBuffer,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the mapping that was asked for last. A callback of an earlier one, which was given up, comes too late.
    mapping: u64,
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// A buffer that is being mapped. Wait for it, or await it, then look at the bytes; dropped, it is unmapped again.
pub(crate) struct Readback {
    gpu: Arc<Gpu>,
    staging: Arc<Staging>,
    /// The submission whose copies it waits for; none later.
    submission: Option<wgpu::SubmissionIndex>,
    polled: bool,
}

impl Staging {
    /// # Errors
    /// As [`Gpu::create_buffer`].
    pub fn new(gpu: &Gpu, label: &str, bytes: u64) -> Result<Arc<Self>> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Ok(Arc::new(Self { buffer: gpu.create_buffer(label, bytes, usage)?, state: Arc::default() }))
    }
}

impl Readback {
    /// Records, submits, and maps the buffer that the commands copy to, under one error scope.
    ///
    /// # Errors
    /// What the device refuses; a device that is lost.
    pub(super) fn after(
        gpu: &Arc<Gpu>,
        staging: &Arc<Staging>,
        submit: impl FnOnce() -> wgpu::SubmissionIndex,
    ) -> Result<Self> {
        // Made first: refused, it is dropped, and the buffer unmapped.
        let mut readback = Self { gpu: gpu.clone(), staging: staging.clone(), submission: None, polled: false };
        gpu.check_alive()?;
        readback.submission = Some(gpu.scoped(|| {
            let submission = submit();
            readback.map();
            submission
        })?);
        Ok(readback)
    }

    fn map(&self) {
        let shared = self.staging.state.clone();
        let asked = {
            let mut state = lock(&shared);
            *state = State { mapping: state.mapping + 1, result: None, waker: None };
            state.mapping
        };
        self.staging.buffer.0.map_async(wgpu::MapMode::Read, .., move |result| {
            let mut state = lock(&shared);
            if state.mapping == asked {
                state.result = Some(result);
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
            }
        });
    }

    /// Blocks until the bytes are there.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn wait(&self) -> Result<()> {
        self.gpu.wait_until(self.submission.as_ref(), || lock(&self.staging.state).result.is_some())?;
        self.mapped().expect("the wait ended because there is a result")
    }

    /// Whether it was mapped, once that is known.
    fn mapped(&self) -> Option<Result<()>> {
        Some(match lock(&self.staging.state).result.clone()? {
            // A valid buffer fails to map only on a device that is gone.
            Err(error) => Err(self.gpu.check_alive().err().unwrap_or(Error::DeviceLost(error.to_string()))),
            Ok(()) => Ok(()),
        })
    }

    /// Looks at bytes that are there.
    ///
    /// # Errors
    /// A device that is lost, or what `look` refuses.
    pub fn look<T>(&self, range: &Range<u64>, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        if range.is_empty() {
            return look(&[]);
        }
        let padded = range.start..range.end.next_multiple_of(4);
        let view = self.staging.buffer.0.get_mapped_range(padded).map_err(|error| self.gpu.complaint(&error))?;
        look(&view[..(range.end - range.start) as usize])
    }
}

impl Future for Readback {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        lock(&self.staging.state).waker = Some(context.waker().clone());
        if let Some(result) = self.mapped() {
            return Poll::Ready(result);
        }
        if !self.polled {
            self.polled = true;
            drive(self.gpu.clone(), self.submission.clone());
        }
        Poll::Pending
    }
}

/// Natively somebody must poll the device for callbacks to run: a thread of its own, so that no executor's is held.
#[cfg(not(target_arch = "wasm32"))]
fn drive(gpu: Arc<Gpu>, submission: Option<wgpu::SubmissionIndex>) {
    // A failed wait shows as a failed mapping, which wakes the future as well.
    std::thread::spawn(move || gpu.wait_for(submission.as_ref()));
}

/// The browser calls back by itself.
#[cfg(target_arch = "wasm32")]
fn drive(_gpu: Arc<Gpu>, _submission: Option<wgpu::SubmissionIndex>) {}

impl Drop for Readback {
    fn drop(&mut self) {
        // A device that was lost meanwhile complains, which whoever waits for the result learns from its mapping.
        let _ = self.gpu.scoped(|| self.staging.buffer.0.unmap());
    }
}

impl fmt::Debug for Readback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readback")
    }
}
