//! Bytes on their way back to the host.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::gpu_device::{Gpu, GpuBuffer, lock};
use crate::error::{Error, Result};

/// A buffer that is being mapped. Wait for it, or await it; dropped early, it is unmapped again.
pub(crate) struct Readback {
    gpu: Arc<Gpu>,
    buffer: GpuBuffer,
    ranges: Vec<Range<u64>>,
    state: Arc<Mutex<State>>,
    polled: bool,
}

#[derive(Default)]
struct State {
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

impl Readback {
    /// Maps a buffer whose copies have been submitted; `ranges` become one vector each.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn start(gpu: Arc<Gpu>, buffer: GpuBuffer, ranges: Vec<Range<u64>>) -> Result<Self> {
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        gpu.scoped(|| {
            buffer.0.map_async(wgpu::MapMode::Read, .., move |result| {
                let mut state = lock(&shared);
                state.result = Some(result);
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
            });
        })?;
        Ok(Self { gpu, buffer, ranges, state, polled: false })
    }

    /// Blocks until the bytes are there.
    pub fn wait(self) -> Result<Vec<Vec<u8>>> {
        self.gpu.wait_until(|| lock(&self.state).result.is_some())?;
        self.take().expect("the wait ended because there is a result")
    }

    /// The bytes, once the buffer is mapped.
    fn take(&self) -> Option<Result<Vec<Vec<u8>>>> {
        let result = lock(&self.state).result.take()?;
        Some(match result {
            // A valid buffer fails to map only on a device that is gone.
            Err(error) => Err(self.gpu.check_alive().err().unwrap_or(Error::DeviceLost(error.to_string()))),
            Ok(()) => self.ranges.iter().map(|range| self.bytes(range)).collect(),
        })
    }

    fn bytes(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let padded = range.start..range.end.next_multiple_of(4);
        let view = self.buffer.0.get_mapped_range(padded).map_err(|error| self.gpu.complaint(&error))?;
        Ok(view[..(range.end - range.start) as usize].to_vec())
    }
}

impl Future for Readback {
    type Output = Result<Vec<Vec<u8>>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        lock(&self.state).waker = Some(context.waker().clone());
        if let Some(result) = self.take() {
            return Poll::Ready(result);
        }
        if !self.polled {
            self.polled = true;
            drive(self.gpu.clone());
        }
        Poll::Pending
    }
}

/// Natively somebody must poll the device for callbacks to run: a thread of its own, so that no executor's is held.
#[cfg(not(target_arch = "wasm32"))]
fn drive(gpu: Arc<Gpu>) {
    // A failed wait shows as a failed mapping, which wakes the future as well.
    std::thread::spawn(move || gpu.wait());
}

/// The browser calls back by itself.
#[cfg(target_arch = "wasm32")]
fn drive(_gpu: Arc<Gpu>) {}

impl Drop for Readback {
    fn drop(&mut self) {
        // A device that was lost meanwhile complains, which whoever waits for the result learns from its mapping.
        let _ = self.gpu.scoped(|| self.buffer.0.unmap());
    }
}
