//! The samples of one scrape.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::exposition::catalog;
use crate::metrics::exposition::catalog::{Kind, Row, Series};

/// Samples by family and label values. A family without samples is absent from the scrape.
#[derive(Debug, Default)]
pub(crate) struct Families(BTreeMap<&'static str, BTreeMap<Vec<String>, Value>>);

/// The value of a sample.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Integer(u64),
    Float(f64),
    Histogram(Histogram),
}

impl Families {
    /// Sets the value of one series. `labels` are the values in the order of the catalog.
    pub(crate) fn set<const LABELS: usize>(
        &mut self,
        series: &'static Series<LABELS>,
        labels: [&str; LABELS],
        value: impl Into<Value>,
    ) {
        let labels = labels.map(str::to_owned).to_vec();
        self.0.entry(series.name).or_default().insert(labels, value.into());
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for row in catalog::ALL {
            let Some(samples) = self.0.get(row.name) else { continue };
            let mut family = encoder.encode_descriptor(row.family_name(), row.help, None, row.kind.metric_type())?;
            for (values, value) in samples {
                let labels: Vec<_> = row.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                encode(row, value, family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode(row: &Row, value: &Value, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    match (value, row.kind) {
        (Value::Histogram(histogram), _) => histogram.encode(encoder),
        (Value::Integer(value), Kind::Counter) => encoder.encode_counter::<NoLabelSet, u64, u64>(value, None),
        (Value::Float(value), Kind::Counter) => encoder.encode_counter::<NoLabelSet, f64, u64>(value, None),
        (Value::Integer(value), Kind::Gauge | Kind::Histogram) => encoder.encode_gauge(value),
        (Value::Float(value), Kind::Gauge | Kind::Histogram) => encoder.encode_gauge(value),
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<Histogram> for Value {
    fn from(value: Histogram) -> Self {
        Self::Histogram(value)
    }
}
