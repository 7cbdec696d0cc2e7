//! Sentences into vectors.

use std::ops::Range;
use std::path::Path;

use tokenizers::{Tokenizer, TruncationParams};

use super::bert::{Bert, IDS, PLACES, POOLED, Packed, STARTS, States, state};
use super::config::Config;
use super::plans::{Plans, bucket};
use crate::capabilities::Backend;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::tensor::{Dtype, HostTensor};

/// Most tokens of a sentence, the two special ones included; the rest is cut off. What sentence-transformers say of
/// all-MiniLM-L6-v2.
const MAX_TOKENS: usize = 256;
/// Tokens of a batch: enough rows for matrix products at full speed and few enough for caches; on a GPU, enough for it to be
/// busy.
const BATCH_TOKENS_CPU: usize = 1024;
const BATCH_TOKENS_GPU: usize = 8192;
/// So many batches' worth of plans are kept.
const PLANS: usize = 4;

/// A BERT-style sentence encoder, such as all-MiniLM-L6-v2: token ids → embeddings → encoder layers → mean over the tokens
/// → unit length.
///
/// Computes no padding: the tokens of a batch lie one after another, and attention keeps the sentences apart. Their number
/// is rounded up by at most 1/32, so that plans are used again. Sentences are cut off at 256 tokens, or at as many positions
/// as the model has; padding and truncation that `tokenizer.json` asks for are switched off.
///
/// ```no_run
/// # fn main() -> regard::Result<()> {
/// use regard::models::SentenceEncoder;
/// use regard::{Device, DeviceOptions};
///
/// let device = Device::new(&DeviceOptions::default())?;
/// let mut encoder = SentenceEncoder::open(&device, "all-MiniLM-L6-v2".as_ref())?;
/// let vectors = encoder.encode(&["The cat sat on the mat.", "A kitten was resting on a small rug."])?;
/// assert_eq!(vectors.shape(), [2, encoder.width()]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SentenceEncoder {
    device: Device,
    tokenizer: Tokenizer,
    tokenizer_path: String,
    bert: Bert,
    plans: Plans,
    batch_tokens: usize,
}

/// Options of a [`SentenceEncoder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderOptions {
    /// What weights and intermediate results are stored as: f32 or f16. Sums and vectors are f32 in any case.
    pub dtype: Dtype,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self { dtype: Dtype::F32 }
    }
}

impl SentenceEncoder {
    /// Opens a folder with `config.json`, `tokenizer.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`SentenceEncoder::with_options`].
    pub fn open(device: &Device, folder: &Path) -> Result<Self> {
        Self::with_options(device, folder, &EncoderOptions::default())
    }

    /// As [`SentenceEncoder::open`], with options.
    ///
    /// # Errors
    /// A file that is missing or broken, a model of another kind, a tensor that is missing or has another shape or dtype, a
    /// vocabulary that is larger than the model's; each names the file and the tensor. A dtype other than f32 and f16, or f16
    /// on a device without it.
    pub fn with_options(device: &Device, folder: &Path, options: &EncoderOptions) -> Result<Self> {
        if !options.dtype.is_device_float() {
            return Err(Error::option(
                "sentence_encoder",
                format!("dtype is {}, f32 or f16 was expected", options.dtype),
            ));
        }
        if options.dtype == Dtype::F16 && !device.capabilities().f16 {
            return Err(Error::option("sentence_encoder", "dtype is f16, and the device has no f16"));
        }
        let config = Config::read(&folder.join("config.json"))?;
        let path = folder.join("tokenizer.json");
        let tokenizer = tokenizer(&path, &config)?;
        let bert = Bert::read(&folder.join("model.safetensors"), config, options.dtype)?;
        let batch_tokens = match device.capabilities().backend {
            Backend::Cpu => BATCH_TOKENS_CPU,
            Backend::Gpu => BATCH_TOKENS_GPU,
        };
        let plans = Plans::new(PLANS * batch_tokens);
        let tokenizer_path = path.display().to_string();
        Ok(Self { device: device.clone(), tokenizer, tokenizer_path, bert, plans, batch_tokens })
    }

    /// Size of a vector.
    pub fn width(&self) -> usize {
        self.bert.config.hidden
    }

    /// Each sentence's vector of unit length, f32 `[sentences, width]`, in the order of the sentences.
    ///
    /// # Errors
    /// A device that is lost or has too little memory.
    pub fn encode(&mut self, sentences: &[&str]) -> Result<HostTensor> {
        let pooled = self.encode_pooled(sentences)?;
        self.unit_rows(&pooled)
    }

    /// What [`SentenceEncoder::encode`] returns before it is brought to unit length.
    ///
    /// # Errors
    /// As [`SentenceEncoder::encode`].
    pub fn encode_pooled(&mut self, sentences: &[&str]) -> Result<HostTensor> {
        let ids = self.tokenize(sentences)?;
        self.pool(&ids)
    }

    /// Token ids of each sentence, the special ones included.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn tokenize(&self, sentences: &[&str]) -> Result<Vec<Vec<u32>>> {
        let encodings = self.tokenizer.encode_batch_fast(sentences.to_vec(), true);
        let encodings =
            encodings.map_err(|error| Error::File { path: self.tokenizer_path.clone(), message: error.to_string() })?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The states of one sentence before the first layer and after each, `[tokens, width]`. Its plan is not kept.
    ///
    /// # Errors
    /// As [`SentenceEncoder::encode`].
    pub fn states(&self, sentence: &str) -> Result<Vec<HostTensor>> {
        self.states_of(&self.tokenize(&[sentence])?[0])
    }

    /// The same of token ids, which the model must know.
    pub(super) fn states_of(&self, ids: &[u32]) -> Result<Vec<HostTensor>> {
        let packed = Packed { tokens: ids.len(), sentences: 1 };
        let mut plan = Plan::new(&self.device, &self.bert.graph(packed, States::All)?)?;
        let batch = Batch::new(&[ids], packed)?;
        let mut outputs = plan.run(&batch.inputs())?;
        let missing = |name: String| Error::Plan(format!("there is no output `{name}`"));
        (0..=self.bert.config.layers)
            .map(|layer| outputs.remove(&state(layer)).ok_or_else(|| missing(state(layer))))
            .collect()
    }

    pub(super) fn config(&self) -> &Config {
        &self.bert.config
    }

    /// Rows brought to unit length.
    pub(super) fn unit_rows(&self, pooled: &HostTensor) -> Result<HostTensor> {
        let mut rows = pooled.as_f32().expect("means are f32").to_vec();
        for row in rows.chunks_exact_mut(self.width()) {
            let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            // A vector of zeros stays one, as in PyTorch's `normalize`.
            let scale = 1.0 / length.max(1e-12);
            row.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        }
        HostTensor::f32(pooled.shape(), rows)
    }

    /// Means over the tokens of each sentence, whose ids the model must know: f32 `[sentences, width]`.
    pub(super) fn pool(&mut self, ids: &[Vec<u32>]) -> Result<HostTensor> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        // Sentences of one length make batches of one size, whose plan is used again.
        order.sort_by_key(|&sentence| ids[sentence].len());
        let width = self.width();
        let mut pooled = vec![0.0; ids.len() * width];
        for batch in batches(&order, ids, self.batch_tokens) {
            let members = &order[batch];
            let tokens: Vec<&[u32]> = members.iter().map(|&sentence| &ids[sentence][..]).collect();
            let rows = self.run(&tokens)?;
            for (row, &sentence) in rows.chunks_exact(width).zip(members) {
                pooled[sentence * width..(sentence + 1) * width].copy_from_slice(row);
            }
        }
        HostTensor::f32(&[ids.len(), width], pooled)
    }

    /// The means of one batch, and of as many sentences without tokens as its plan has more.
    fn run(&mut self, sentences: &[&[u32]]) -> Result<Vec<f32>> {
        let tokens = sentences.iter().map(|ids| ids.len()).sum();
        let packed = bucket(Packed { tokens, sentences: sentences.len() });
        let batch = Batch::new(sentences, packed)?;
        let (bert, device) = (&self.bert, &self.device);
        let plan = self.plans.get(packed, || Plan::new(device, &bert.graph(packed, States::Pooled)?))?;
        let outputs = plan.run(&batch.inputs())?;
        let pooled = outputs.get(POOLED).map(|pooled| pooled.cast(Dtype::F32));
        let pooled = pooled.as_ref().and_then(HostTensor::as_f32);
        Ok(pooled.ok_or_else(|| Error::Plan(format!("there is no output `{POOLED}`")))?.to_vec())
    }
}

/// Runs of the order with at most so many tokens, and one sentence at least.
fn batches(order: &[usize], ids: &[Vec<u32>], tokens: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (at, &sentence) in order.iter().enumerate() {
        let length = ids[sentence].len();
        match batches.last_mut().filter(|_| filled + length <= tokens) {
            Some(batch) => batch.end = at + 1,
            None => {
                batches.push(at..at + 1);
                filled = 0;
            }
        }
        filled += length;
    }
    batches
}

/// Inputs of a plan.
struct Batch {
    ids: HostTensor,
    places: HostTensor,
    starts: HostTensor,
}

impl Batch {
    /// Sentences in a plan for `packed`, which has room for them. Tokens and sentences that it has more take no part.
    fn new(sentences: &[&[u32]], packed: Packed) -> Result<Self> {
        let mut ids = vec![0; packed.tokens];
        let mut places = vec![0; packed.tokens];
        let mut starts = vec![0; packed.sentences + 1];
        let mut start = 0;
        for (number, sentence) in sentences.iter().enumerate() {
            let end = start + sentence.len();
            ids[start..end].copy_from_slice(sentence);
            places[start..end].iter_mut().zip(0..).for_each(|(place, position)| *place = position);
            starts[number + 1..].fill(end as u32);
            start = end;
        }
        Ok(Self {
            ids: HostTensor::u32(&[packed.tokens], ids)?,
            places: HostTensor::u32(&[packed.tokens], places)?,
            starts: HostTensor::u32(&[packed.sentences + 1], starts)?,
        })
    }

    fn inputs(&self) -> [(&str, &HostTensor); 3] {
        [(IDS, &self.ids), (PLACES, &self.places), (STARTS, &self.starts)]
    }
}

/// `tokenizer.json` without its padding and truncation, checked against the model.
fn tokenizer(path: &Path, config: &Config) -> Result<Tokenizer> {
    let fail = |message: String| Error::File { path: path.display().to_string(), message };
    // A file that cannot be opened gives no path in the tokenizer's own words.
    let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let mut tokenizer = Tokenizer::from_bytes(text).map_err(|error| fail(error.to_string()))?;
    let max_length = MAX_TOKENS.min(config.positions);
    let truncation = TruncationParams { max_length, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| fail(error.to_string()))?;
    tokenizer.with_padding(None);
    let vocabulary = tokenizer.get_vocab(true);
    if let Some((token, id)) =
        vocabulary.iter().max_by_key(|(_, id)| **id).filter(|(_, id)| **id as usize >= config.vocabulary)
    {
        let rows = config.vocabulary;
        return Err(fail(format!(
            "token `{token}` has id {id}, and `embeddings.word_embeddings.weight` has {rows} rows by `vocab_size` in config.json"
        )));
    }
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_the_order_and_are_full() {
        let ids: Vec<Vec<u32>> = [3, 4, 5, 9, 2].iter().map(|&length| vec![0; length]).collect();
        assert_eq!(batches(&[4, 0, 1, 2, 3], &ids, 9), [0..3, 3..4, 4..5]);
        assert_eq!(batches(&[0, 1], &ids, 1), [0..1, 1..2]);
        assert!(batches(&[], &ids, 9).is_empty());
    }

    #[test]
    fn a_batch_places_its_sentences() {
        let batch = Batch::new(&[&[7, 8], &[9]], Packed { tokens: 4, sentences: 3 }).unwrap();
        assert_eq!(batch.ids.as_u32().unwrap(), [7, 8, 9, 0]);
        assert_eq!(batch.places.as_u32().unwrap(), [0, 1, 0, 0]);
        assert_eq!(batch.starts.as_u32().unwrap(), [0, 2, 3, 3]);
    }
}
