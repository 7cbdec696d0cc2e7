//! Suites, measurement and reports.
