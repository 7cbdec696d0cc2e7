//! A sentence encoder on the sentences of a golden file, whose weights are the encoder's own.

use serde_json::Value;

use super::SentenceEncoder;
use crate::error::Result;
use crate::nn::golden::Golden;
use crate::plan::Outputs;
use crate::tensor::HostTensor;

const IDS: &str = "in.input_ids";
const MASK: &str = "in.attention_mask";
/// What the names of hidden states begin with.
const HIDDEN: &str = "hidden_";

/// Ids in rows of equal length, as `transformers` pads them.
struct Padded<'a> {
    ids: &'a HostTensor,
    /// 1 where there is a token; all of them where the file has no mask.
    mask: Option<&'a HostTensor>,
}

impl SentenceEncoder {
    /// Runs the encoder on a golden file of a kind that is a whole model, and names the results as the file does:
    /// `input_ids` and `attention_mask` u32 `[sentences, tokens]`, `pooled` and `embedding` f32 `[sentences, width]`, and the
    /// hidden states that the file expects, `hidden_<place>_<sentence>` f32 `[tokens, width]` with `embeddings`, `layer1`
    /// and its like, or `last` for a place. [`Golden::compare`] takes them.
    ///
    /// The sentences are those of the file's configuration, or, where it has none, its ids.
    ///
    /// # Errors
    /// A file of another kind, without sentences and ids, or with ids, sentences or layers that the model has not; each names
    /// the file and the tensor.
    pub fn run_golden(&mut self, golden: &Golden) -> Result<Outputs> {
        if !golden.is_model() {
            return Err(golden.fail(format!("kind `{}` is no sentence encoder", golden.kind)));
        }
        let padded = self.padded(golden)?;
        let ids = match (sentences(golden)?, &padded) {
            (Some(sentences), _) => self.tokenize(&sentences)?,
            (None, Some(padded)) => self.rows(golden, padded)?,
            (None, None) => {
                return Err(golden.fail(format!("there is neither config `sentences` nor a tensor `{IDS}`")));
            }
        };
        let mut outputs = self.hidden_states(golden, &ids)?;
        let [ids_in_rows, mask] = in_rows(&ids, padded.as_ref())?;
        outputs.extend([("input_ids".to_owned(), ids_in_rows), ("attention_mask".to_owned(), mask)]);
        let pooled = self.pool(&ids)?;
        outputs.insert("embedding".into(), self.unit_rows(&pooled)?);
        outputs.insert("pooled".into(), pooled);
        Ok(outputs)
    }

    /// The file's ids, which the model's vocabulary must have.
    fn padded<'a>(&self, golden: &'a Golden) -> Result<Option<Padded<'a>>> {
        if golden.optional(IDS).is_none() {
            return Ok(None);
        }
        let ids = golden.ids(IDS, self.config().vocabulary)?;
        if ids.shape().len() != 2 {
            return Err(golden.fail(format!("tensor `{IDS}` is {}, [sentences, tokens] was expected", ids.desc())));
        }
        let mask = golden.optional(MASK).map(|_| golden.ids(MASK, 2)).transpose()?;
        match mask.filter(|mask| mask.shape() != ids.shape()) {
            Some(mask) => {
                Err(golden.fail(format!("tensor `{MASK}` is {}, {:?} was expected", mask.desc(), ids.shape())))
            }
            None => Ok(Some(Padded { ids, mask })),
        }
    }

    /// Rows without their padding, which must come last.
    fn rows(&self, golden: &Golden, padded: &Padded<'_>) -> Result<Vec<Vec<u32>>> {
        let width = padded.ids.desc().row_length().max(1);
        let ids = padded.ids.as_u32().unwrap_or_default().chunks_exact(width);
        let rows = ids.enumerate().map(|(number, row)| {
            let mask = padded.mask.and_then(HostTensor::as_u32).map(|mask| &mask[number * width..(number + 1) * width]);
            let tokens = mask.map_or(width, |mask| mask.iter().filter(|&&token| token == 1).count());
            if mask.is_some_and(|mask| mask[..tokens].contains(&0)) {
                return Err(golden.fail(format!("tensor `{MASK}` has padding in front of a token in row {number}")));
            }
            let positions = self.config().positions;
            if !(1..=positions).contains(&tokens) {
                let message = format!("tensor `{IDS}` has {tokens} tokens in row {number}");
                return Err(golden.fail(format!("{message}, 1 to {positions} were expected, the model's positions")));
            }
            Ok(row[..tokens].to_vec())
        });
        rows.collect()
    }

    fn hidden_states(&self, golden: &Golden, ids: &[Vec<u32>]) -> Result<Outputs> {
        let mut states: Vec<Option<Vec<HostTensor>>> = vec![None; ids.len()];
        let mut outputs = Outputs::new();
        for name in golden.expected().into_keys().filter(|name| name.starts_with(HIDDEN)) {
            let (place, sentence) = name[HIDDEN.len()..].rsplit_once('_').unwrap_or_default();
            let sentence = sentence.parse::<usize>().ok().filter(|&sentence| sentence < ids.len());
            let layer = match place {
                "embeddings" => Some(0),
                "last" => Some(self.config().layers),
                layer => layer.strip_prefix("layer").and_then(|layer| layer.parse().ok()),
            };
            let (Some(sentence), Some(layer)) = (sentence, layer.filter(|&layer| layer <= self.config().layers)) else {
                let (layers, sentences) = (self.config().layers, ids.len());
                let message = format!("tensor `{name}` is none of {layers} layers and {sentences} sentences");
                return Err(golden.fail(message));
            };
            let states = match &mut states[sentence] {
                Some(states) => states,
                none => none.insert(self.states_of(&ids[sentence])?),
            };
            outputs.insert(name.to_owned(), states[layer].clone());
        }
        Ok(outputs)
    }
}

/// `sentences` of the configuration.
fn sentences(golden: &Golden) -> Result<Option<Vec<&str>>> {
    let setting = &golden.config()["sentences"];
    if setting.is_null() {
        return Ok(None);
    }
    let sentences = setting.as_array().and_then(|sentences| sentences.iter().map(Value::as_str).collect());
    sentences
        .map(Some)
        .ok_or_else(|| golden.fail(format!("config `sentences` is {setting}, a list of texts was expected")))
}

/// Ids and mask as the file has them: in rows of its length, or longer where a sentence is, with its own padding.
fn in_rows(ids: &[Vec<u32>], padded: Option<&Padded<'_>>) -> Result<[HostTensor; 2]> {
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let wanted = padded.map(|padded| (padded.ids.desc().row_length(), padded.ids.as_u32().unwrap_or_default()));
    let width = wanted.map_or(longest, |(width, _)| width.max(longest));
    let (mut rows, mut mask) = (Vec::new(), Vec::new());
    for (number, ids) in ids.iter().enumerate() {
        // What stands where there is no token says nothing of the sentence.
        let padding = |at| match wanted {
            Some((columns, padded)) if at < columns => padded.get(number * columns + at).copied().unwrap_or(0),
            _ => 0,
        };
        rows.extend((0..width).map(|at| ids.get(at).copied().unwrap_or_else(|| padding(at))));
        mask.extend((0..width).map(|at| u32::from(at < ids.len())));
    }
    let shape = [ids.len(), width];
    Ok([HostTensor::u32(&shape, rows)?, HostTensor::u32(&shape, mask)?])
}
