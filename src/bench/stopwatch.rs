//! Runs until they are steady, and then samples.

use std::time::{Duration, Instant};

use super::cold::{CacheState, Flush};
use super::measure::Settings;
use super::statistics::Statistics;
use crate::device::Device;
use crate::error::Result;
use crate::graph::Graph;
use crate::plan::{Clock, Plan};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// Most runs that are measured; more tell nothing.
const MOST_RUNS: usize = 10_000;

/// A batch of the warm-up lasts as long, and has three runs.
const BATCH: Duration = Duration::from_millis(40);

/// The warm-up ends when the medians of two successive batches differ by no more than this share.
const STEADY: f64 = 0.02;

/// Submissions of nothing whose median is what a submission costs.
const EMPTY: usize = 31;

/// Times runs on one device.
#[derive(Debug)]
pub(super) struct Stopwatch {
    flush: Flush,
    clock: Clock,
    cache: CacheState,
    /// What a submission takes that does nothing, where the clock cannot leave it out.
    empty: f64,
}

impl Stopwatch {
    pub fn new(device: &Device, cache: CacheState) -> Result<Self> {
        let mut nothing = nothing(device)?;
        let clock = nothing.measure()?.clock;
        let empty = match clock {
            Clock::Gpu | Clock::Host => 0.0,
            Clock::HostNoTimestamps => {
                let samples = (0..EMPTY).map(|_| Ok(nothing.measure()?.seconds)).collect::<Result<Vec<_>>>()?;
                median(&samples)
            }
        };
        Ok(Self { flush: Flush::new(device, cache)?, clock, cache, empty })
    }

    /// In words, with what was subtracted.
    pub fn describe(&self) -> String {
        match self.clock {
            Clock::Gpu | Clock::Host => self.clock.describe().into(),
            Clock::HostNoTimestamps => format!(
                "host clock from submission to completion less the {:.1} µs of an empty submission, the device has no timestamps",
                self.empty * 1e6
            ),
        }
    }

    pub fn cache(&self) -> CacheState {
        self.cache
    }

    /// Seconds of an empty submission, where they were subtracted.
    pub fn subtracted(&self) -> f64 {
        self.empty
    }

    /// Seconds of one run.
    pub fn time(&mut self, plan: &mut Plan) -> Result<f64> {
        self.flush.run()?;
        Ok((plan.measure()?.seconds - self.empty).max(0.0))
    }

    /// Seconds of each step of one run.
    pub fn profile(&mut self, plan: &mut Plan) -> Result<Vec<f64>> {
        self.flush.run()?;
        Ok(plan.profile()?.steps.into_iter().map(|(_, seconds)| (seconds - self.empty).max(0.0)).collect())
    }

    /// Runs until they take as long as those before, or the time for that is over. Clocks, caches of code and threads that
    /// sleep take their time.
    pub fn warm_up(&mut self, plan: &mut Plan, settings: &Settings) -> Result<()> {
        let start = Instant::now();
        let mut before: Option<f64> = None;
        loop {
            let (batch, mut samples) = (Instant::now(), Vec::new());
            while samples.len() < 3 || batch.elapsed() < BATCH {
                if start.elapsed() >= settings.warm_up {
                    return Ok(());
                }
                samples.push(self.time(plan)?);
            }
            let now = median(&samples);
            if before.is_some_and(|before| (now - before).abs() <= STEADY * before) {
                return Ok(());
            }
            before = Some(now);
        }
    }

    /// Seconds of runs of each of these plans, which take turns: every other round in the opposite order.
    pub fn sample(&mut self, plans: &mut [&mut Plan], settings: &Settings) -> Result<Vec<Vec<f64>>> {
        let mut samples = vec![Vec::new(); plans.len()];
        let budget = settings.budget * u32::try_from(plans.len()).unwrap_or(u32::MAX);
        let start = Instant::now();
        for round in 0..settings.runs.map_or(MOST_RUNS, |runs| runs.max(1)) {
            let over = settings.runs.is_none() && start.elapsed() >= budget;
            if over && round >= settings.least_runs.max(1) {
                break;
            }
            for turn in 0..plans.len() {
                let at = if round % 2 == 0 { turn } else { plans.len() - 1 - turn };
                samples[at].push(self.time(plans[at])?);
            }
        }
        Ok(samples)
    }
}

/// A plan of one step that has nothing to do.
fn nothing(device: &Device) -> Result<Plan> {
    let mut graph = Graph::new();
    let desc = TensorDesc::new(Dtype::U32, [0]);
    let (target, value) = (graph.input("target", desc.clone())?, graph.input("value", desc.clone())?);
    graph.assign(target, value)?;
    let mut plan = Plan::new(device, &graph)?;
    for name in ["target", "value"] {
        plan.write(name, &HostTensor::zeros(desc.clone()))?;
    }
    Ok(plan)
}

fn median(samples: &[f64]) -> f64 {
    Statistics::new(samples).map_or(0.0, |statistics| statistics.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopwatch(clock: Clock, empty: f64) -> Stopwatch {
        Stopwatch { flush: Flush::Nothing, clock, cache: CacheState::Warm, empty }
    }

    #[test]
    fn what_is_subtracted_is_said() {
        let watch = stopwatch(Clock::HostNoTimestamps, 12.34e-6);
        assert!(watch.describe().contains("less the 12.3 µs of an empty submission"), "{}", watch.describe());
        assert_eq!(stopwatch(Clock::Gpu, 0.0).describe(), "GPU timestamps");
    }

    #[test]
    fn it_is_subtracted() {
        let mut plan = nothing(&Device::cpu()).unwrap();
        assert_eq!(stopwatch(Clock::HostNoTimestamps, 3600.0).time(&mut plan).unwrap(), 0.0);
        assert_eq!(Stopwatch::new(&Device::cpu(), CacheState::Warm).unwrap().subtracted(), 0.0);
    }

    #[test]
    fn runs_are_as_many_as_asked_for_and_in_turns() {
        let mut plans = [nothing(&Device::cpu()).unwrap(), nothing(&Device::cpu()).unwrap()];
        let mut plans: Vec<_> = plans.iter_mut().collect();
        let mut watch = stopwatch(Clock::Host, 0.0);
        let count = |samples: Vec<Vec<f64>>| samples.iter().map(Vec::len).collect::<Vec<_>>();
        let settings = Settings { budget: Duration::ZERO, least_runs: 4, ..Settings::default() };
        assert_eq!(count(watch.sample(&mut plans, &settings).unwrap()), [4, 4]);
        let settings = Settings { runs: Some(7), ..settings };
        assert_eq!(count(watch.sample(&mut plans, &settings).unwrap()), [7, 7]);
    }
}
