//! What the layers of golden files are built with.

use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::seeds::Dense;
use crate::nn::{Linear, WeightOrder};
use crate::tensor::{Dtype, HostTensor};

/// A graph under construction and the inputs it needs.
pub(super) struct Builder<'a> {
    pub golden: &'a Golden,
    pub graph: Graph,
    pub inputs: Vec<(String, HostTensor)>,
}

/// A size that a tensor's axis must have; `None` where any will do.
pub(super) type Size = Option<usize>;

impl<'a> Builder<'a> {
    pub fn new(golden: &'a Golden) -> Self {
        Self { golden, graph: Graph::new(), inputs: Vec::new() }
    }

    pub fn input(&mut self, name: &str, value: HostTensor) -> Result<Tensor> {
        let tensor = self.graph.input(name, value.desc().clone())?;
        self.inputs.push((name.to_owned(), value));
        Ok(tensor)
    }

    pub fn float_input(&mut self, name: &str) -> Result<Tensor> {
        let value = self.golden.floats(&format!("in.{name}"))?;
        self.input(name, value)
    }

    /// Query, key and value under another shape or order, a tensor that is several of them once.
    pub fn each_once(
        &mut self,
        inputs: [Tensor; 3],
        mut changed: impl FnMut(&mut Self, Tensor) -> Result<Tensor>,
    ) -> Result<[Tensor; 3]> {
        let [query, key, value] = inputs;
        let first = changed(self, query)?;
        let second = if key == query { first } else { changed(self, key)? };
        let third = match value {
            value if value == query => first,
            value if value == key => second,
            value => changed(self, value)?,
        };
        Ok([first, second, third])
    }

    /// A float input of so many axes, and their sizes.
    pub fn ranked_input<const RANK: usize>(&mut self, name: &str) -> Result<(Tensor, [usize; RANK])> {
        let value = self.golden.floats(&format!("in.{name}"))?;
        let Ok(sizes) = <[usize; RANK]>::try_from(value.shape()) else {
            let message = format!("tensor `in.{name}` is {}, {RANK} axes were expected", value.desc());
            return Err(self.golden.fail(message));
        };
        Ok((self.input(name, value)?, sizes))
    }

    /// A mask that the case need not list: bool, or floats that multiply.
    pub fn mask(&self, name: &str, shape: &[usize]) -> Result<Option<HostTensor>> {
        let golden = self.golden;
        let stored = format!("in.{name}");
        if golden.optional(&stored).is_none() && !golden.lists_input(name) {
            return Ok(None);
        }
        let mask = golden.tensor(&stored)?;
        if mask.shape() != shape {
            return Err(golden.fail(format!("tensor `{stored}` is {}, {shape:?} was expected", mask.desc())));
        }
        Ok(Some(if mask.desc().dtype == Dtype::Bool { mask.clone() } else { golden.floats(&stored)? }))
    }

    /// A tensor as f32, of these sizes.
    pub fn floats(&self, name: &str, shape: &[Size]) -> Result<HostTensor> {
        let value = self.golden.floats(name)?;
        let sizes = value.shape();
        let fits = |(size, wanted): (&usize, &Size)| wanted.is_none_or(|wanted| *size == wanted);
        if sizes.len() == shape.len() && sizes.iter().zip(shape).all(fits) {
            return Ok(value);
        }
        let words: Vec<_> = shape.iter().map(|size| size.map_or("any".into(), |size| size.to_string())).collect();
        Err(self.golden.fail(format!("tensor `{name}` is {}, [{}] was expected", value.desc(), words.join(", "))))
    }

    /// A weight as f32, of these sizes.
    pub fn weight(&mut self, name: &str, shape: &[Size]) -> Result<Tensor> {
        let value = self.floats(name, shape)?;
        self.graph.weight(name, value)
    }

    /// A weight that there is where the setting `bias` says so, or where the file has it and there is no such setting.
    pub fn optional_bias(&mut self, name: &str, shape: &[Size]) -> Result<Option<Tensor>> {
        let wanted = self.golden.config()["bias"].as_bool();
        let wanted = wanted.unwrap_or_else(|| self.golden.optional(name).is_some());
        wanted.then(|| self.weight(name, shape)).transpose()
    }

    /// `w.<name>.kernel` and `w.<name>.bias` of a Keras layer, and its width.
    pub fn dense(&mut self, name: &str, [from, to]: [Size; 2]) -> Result<(Dense, usize)> {
        let kernel = self.weight(&format!("w.{name}.kernel"), &[from, to])?;
        let width = self.graph.desc(kernel)?.row_length();
        let bias = self.weight(&format!("w.{name}.bias"), &[Some(width)])?;
        Ok((Dense { kernel, bias: Some(bias) }, width))
    }

    /// `w.<name>.weight`, and `w.<name>.bias` where there is one.
    pub fn linear(&mut self, name: &str) -> Result<Linear> {
        let (weight, bias) = (format!("w.{name}.weight"), format!("w.{name}.bias"));
        let value = self.golden.floats(&weight)?;
        let weight = self.graph.weight(&weight, value)?;
        if self.golden.optional(&bias).is_none() {
            return Ok(Linear { weight, bias: None, order: WeightOrder::OutIn });
        }
        let value = self.golden.floats(&bias)?;
        Ok(Linear { weight, bias: Some(self.graph.weight(&bias, value)?), order: WeightOrder::OutIn })
    }

    pub fn outputs(&mut self, outputs: &[(&str, Tensor)]) -> Result<()> {
        outputs.iter().try_for_each(|(name, tensor)| self.graph.output(name, *tensor))
    }

    /// An output under another shape.
    pub fn shaped_output(&mut self, name: &str, tensor: Tensor, shape: &[usize]) -> Result<()> {
        let tensor = self.graph.reshape(tensor, shape)?;
        self.graph.output(name, tensor)
    }

    pub fn finish(self) -> GoldenGraph {
        GoldenGraph { graph: self.graph, inputs: self.inputs }
    }
}
