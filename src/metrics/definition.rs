//! How a metric is defined: once, with all that Prometheus and the operator are told of it.

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

/// What a metric is, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Whether it only grows, or what else.
    pub kind: Kind,
    /// What it says, in a sentence. Prometheus is told it too.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [Label],
    /// What else the page for operators says of it, in Markdown; what calls for action is bold.
    pub note: &'static str,
    /// Series come when there is something to say. Otherwise all are there from the start, at 0: a rate sees the first
    /// increase only of what was there before.
    pub on_demand: bool,
    pub(super) buckets: &'static [f64],
}

/// What becomes of a metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often values were in which range.
    Histogram,
}

/// A label, with all values that it can have.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values; none where it has one value in the life of a process.
    pub values: &'static [&'static str],
}

impl Metric {
    pub(super) const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, help, labels: &[], note: "", on_demand: false, buckets: &[] }
    }

    /// Tells series apart by these.
    pub(super) const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    pub(super) const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    pub(super) const fn on_demand(self) -> Self {
        Self { on_demand: true, ..self }
    }

    /// The upper ends of a histogram's ranges.
    pub(super) const fn buckets(self, buckets: &'static [f64]) -> Self {
        Self { buckets, ..self }
    }

    /// The values of the labels of each series, in the order in which they are written.
    #[must_use]
    pub fn series(&self) -> Vec<Vec<&'static str>> {
        self.labels.iter().fold(vec![Vec::new()], |series, label| {
            let longer = |values: &Vec<_>| label.values.iter().map(|value| [&values[..], &[*value]].concat()).collect();
            series.iter().flat_map(|values| -> Vec<_> { longer(values) }).collect()
        })
    }

    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }

    fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn histogram_opts(&self) -> HistogramOpts {
        HistogramOpts::from(self.opts()).buckets(self.buckets.to_vec())
    }
}

impl Label {
    pub(super) const fn new(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values }
    }
}

impl Kind {
    /// As Prometheus names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What the code holds of a metric.
pub(super) trait Handle: Sized {
    const KIND: Kind;

    /// The metric, known to the registry.
    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error>;
}

fn register<C: Collector + Clone + 'static>(collector: C, registry: &Registry) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Handle for IntCounter {
    const KIND: Kind = Kind::Counter;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        register(Self::with_opts(metric.opts())?, registry)
    }
}

impl Handle for IntGauge {
    const KIND: Kind = Kind::Gauge;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        register(Self::with_opts(metric.opts())?, registry)
    }
}

impl Handle for Counter {
    const KIND: Kind = Kind::Counter;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        register(Self::with_opts(metric.opts())?, registry)
    }
}

impl Handle for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        register(Self::with_opts(metric.opts())?, registry)
    }
}

impl Handle for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        register(Self::with_opts(metric.histogram_opts())?, registry)
    }
}

impl Handle for IntCounterVec {
    const KIND: Kind = Kind::Counter;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = register(Self::new(metric.opts(), &metric.label_names())?, registry)?;
        for values in metric.series().iter().filter(|_| !metric.on_demand) {
            family.with_label_values(values);
        }
        Ok(family)
    }
}

impl Handle for IntGaugeVec {
    const KIND: Kind = Kind::Gauge;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = register(Self::new(metric.opts(), &metric.label_names())?, registry)?;
        for values in metric.series().iter().filter(|_| !metric.on_demand) {
            family.with_label_values(values);
        }
        Ok(family)
    }
}

/// All series of a metric, each found by its place in [`Metric::series`]: for what is counted with every request.
#[derive(Debug)]
pub(super) struct Resolved<T>(Vec<T>);

impl<T> Resolved<T> {
    pub(super) fn get(&self, place: usize) -> Option<&T> {
        self.0.get(place)
    }
}

impl Handle for Resolved<IntCounter> {
    const KIND: Kind = Kind::Counter;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = IntCounterVec::registered(metric, registry)?;
        Ok(Self(metric.series().iter().map(|values| family.with_label_values(values)).collect()))
    }
}

impl Handle for Resolved<Histogram> {
    const KIND: Kind = Kind::Histogram;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = HistogramVec::new(metric.histogram_opts(), &metric.label_names())?;
        let family = register(family, registry)?;
        Ok(Self(metric.series().iter().map(|values| family.with_label_values(values)).collect()))
    }
}

/// Defines a structure of handles, and the [`Metric`] of each, by sections of the page for operators.
macro_rules! metrics {
    (
        $(#[$attribute:meta])* pub struct $name:ident {
            $($section:literal {
                $($visibility:vis $field:ident: $handle:ty = $metric:literal, $help:literal $(, $with:ident($($value:expr)?))*;)+
            })+
        }
    ) => {
        $(#[$attribute])*
        pub struct $name {
            registry: prometheus::Registry,
            $($(#[doc = $help] $visibility $field: $handle,)+)+
        }

        impl $name {
            /// What is measured, by sections.
            pub const SECTIONS: &[(&'static str, &'static [Metric])] = &[$(($section, &[$(
                Metric::new($metric, <$handle as Handle>::KIND, $help)$(.$with($($value)?))*,
            )+]),)+];

            fn registered() -> Result<Self, prometheus::Error> {
                let registry = prometheus::Registry::new();
                Ok(Self {
                    $($($field: {
                        const METRIC: Metric = Metric::new($metric, <$handle as Handle>::KIND, $help)$(.$with($($value)?))*;
                        <$handle>::registered(&METRIC, &registry)?
                    },)+)+
                    registry,
                })
            }
        }
    };
}
pub(super) use metrics;
