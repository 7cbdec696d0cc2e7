//! Plans for batches of different sizes, of which a bounded number is kept.

use super::bert::Packed;
use crate::error::Result;
use crate::plan::Plan;

/// Plans by the batch that they are for, the last used one last.
#[derive(Debug)]
pub(super) struct Plans {
    kept: Vec<(Packed, Plan)>,
    /// Most tokens of all kept plans together: memory grows with them.
    capacity: usize,
}

impl Plans {
    pub fn new(capacity: usize) -> Self {
        Self { kept: Vec::new(), capacity }
    }

    /// The plan for this batch, made where there is none; others give way, those that were used longest ago first.
    pub fn get(&mut self, packed: Packed, make: impl FnOnce() -> Result<Plan>) -> Result<&mut Plan> {
        let plan = match self.kept.iter().position(|(kept, _)| *kept == packed) {
            Some(at) => self.kept.remove(at).1,
            None => {
                self.make_room(packed.tokens);
                make()?
            }
        };
        self.kept.push((packed, plan));
        Ok(&mut self.kept.last_mut().expect("one was pushed").1)
    }

    fn make_room(&mut self, tokens: usize) {
        let kept = |plans: &[(Packed, Plan)]| plans.iter().map(|(packed, _)| packed.tokens).sum::<usize>();
        while !self.kept.is_empty() && kept(&self.kept) + tokens > self.capacity {
            self.kept.remove(0);
        }
    }
}

/// The batch size whose plan serves this one: few sizes, so that plans are used again, and at most 1/32 more tokens.
pub(super) fn bucket(Packed { tokens, sentences }: Packed) -> Packed {
    let step = (tokens.next_power_of_two() / 64).max(1);
    Packed { tokens: tokens.next_multiple_of(step), sentences: sentences.next_power_of_two() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::graph::Graph;
    use crate::tensor::{Dtype, TensorDesc};

    #[test]
    fn buckets_are_few_and_close() {
        let mut sizes = Vec::new();
        for tokens in 1..5000 {
            let found = bucket(Packed { tokens, sentences: 5 });
            assert!(found.tokens >= tokens && (found.tokens - tokens) * 32 <= tokens, "{tokens}");
            assert_eq!((bucket(found), found.sentences), (found, 8));
            sizes.push(found.tokens);
        }
        sizes.dedup();
        assert!(sizes.len() < 300, "{}", sizes.len());
    }

    #[test]
    fn the_oldest_give_way() {
        let plan = || {
            let mut graph = Graph::new();
            let x = graph.input("x", TensorDesc::new(Dtype::F32, [1]))?;
            graph.output("x", x)?;
            Plan::new(&Device::cpu(), &graph)
        };
        let batch = |tokens| Packed { tokens, sentences: 1 };
        let mut plans = Plans::new(100);
        for tokens in [40, 30, 20, 40, 35] {
            plans.get(batch(tokens), plan).unwrap();
        }
        let kept: Vec<usize> = plans.kept.iter().map(|(packed, _)| packed.tokens).collect();
        assert_eq!(kept, [20, 40, 35]);
        plans.get(batch(1000), plan).unwrap();
        assert_eq!(plans.kept.len(), 1);
        plans.get(batch(1000), || panic!("it is kept")).unwrap();
    }
}
