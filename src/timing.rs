//! Durations and what measured them.

/// What a duration was measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clock {
    /// Timestamps that the GPU wrote.
    Gpu,
    /// The host's clock around native code.
    Host,
    /// The host's clock from submission to completion, because the device has no timestamps.
    HostNoTimestamps,
}

impl Clock {
    /// In words, with the reason where it is a makeshift.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Gpu => "GPU timestamps",
            Self::Host => "host clock",
            Self::HostNoTimestamps => "host clock with submission, the device has no timestamps",
        }
    }
}

/// Duration of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Seconds.
    pub seconds: f64,
    /// What measured them.
    pub clock: Clock,
}

/// Duration of each step of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Technique and seconds, in order of execution.
    pub steps: Vec<(&'static str, f64)>,
    /// What measured them.
    pub clock: Clock,
}
