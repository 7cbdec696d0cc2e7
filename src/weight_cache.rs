//! Weights that several plans of one device share.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::Result;
use crate::tensor::HostTensor;

/// Device buffers of host tensors, one for each `Arc` that is still alive.
#[derive(Debug)]
pub(crate) struct WeightCache<B> {
    entries: Mutex<Vec<(Weak<HostTensor>, B)>>,
}

impl<B> Default for WeightCache<B> {
    fn default() -> Self {
        Self { entries: Mutex::new(Vec::new()) }
    }
}

impl<B: Clone> WeightCache<B> {
    /// The buffer of this tensor, uploaded if no plan has done so.
    pub fn get(&self, value: &Arc<HostTensor>, upload: impl FnOnce(&HostTensor) -> Result<B>) -> Result<B> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(tensor, _)| tensor.strong_count() > 0);
        if let Some((_, buffer)) = entries.iter().find(|(tensor, _)| std::ptr::eq(tensor.as_ptr(), Arc::as_ptr(value)))
        {
            return Ok(buffer.clone());
        }
        let buffer = upload(value)?;
        entries.push((Arc::downgrade(value), buffer.clone()));
        Ok(buffer)
    }
}
