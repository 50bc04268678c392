//! OpenMetrics 1.0 text. The `prometheus` crate writes only the older Prometheus text format, whose counters, help
//! escapes and end an OpenMetrics reader refuses.

use prometheus::proto::{Metric, MetricFamily, MetricType};
use std::fmt::{self, Write};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn encode(families: &[MetricFamily]) -> Result<String, fmt::Error> {
    let mut out = String::with_capacity(16 * 1024);
    for family in families {
        encode_family(&mut out, family)?;
    }
    out.push_str("# EOF\n");
    Ok(out)
}

fn encode_family(out: &mut String, family: &MetricFamily) -> fmt::Result {
    let (kind, name) = match family.get_field_type() {
        // A counter's family is named without the ending that its samples have.
        MetricType::COUNTER => ("counter", family.name().strip_suffix("_total").unwrap_or(family.name())),
        MetricType::GAUGE => ("gauge", family.name()),
        MetricType::HISTOGRAM => ("histogram", family.name()),
        // pillion has none.
        MetricType::SUMMARY | MetricType::UNTYPED => return Ok(()),
    };
    writeln!(out, "# TYPE {name} {kind}")?;
    if let Some(unit) = ["seconds", "bytes"].iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    write!(out, "# HELP {name} ")?;
    escape(out, family.help());
    out.push('\n');
    for metric in family.get_metric() {
        match family.get_field_type() {
            MetricType::COUNTER => sample(out, name, "_total", metric, None, metric.get_counter().get_value())?,
            MetricType::HISTOGRAM => histogram(out, name, metric)?,
            _ => sample(out, name, "", metric, None, metric.get_gauge().get_value())?,
        }
    }
    Ok(())
}

fn histogram(out: &mut String, name: &str, metric: &Metric) -> fmt::Result {
    let histogram = metric.get_histogram();
    for bucket in histogram.get_bucket() {
        // Debug, because `le` is a canonical float: `1.0` and not `1`.
        let bound = format!("{:?}", bucket.upper_bound());
        sample(out, name, "_bucket", metric, Some(&bound), bucket.cumulative_count() as f64)?;
    }
    let count = histogram.get_sample_count() as f64;
    sample(out, name, "_bucket", metric, Some("+Inf"), count)?;
    sample(out, name, "_sum", metric, None, histogram.get_sample_sum())?;
    sample(out, name, "_count", metric, None, count)
}

fn sample(out: &mut String, name: &str, ending: &str, metric: &Metric, le: Option<&str>, value: f64) -> fmt::Result {
    write!(out, "{name}{ending}")?;
    let labels = metric.get_label().iter().map(|pair| (pair.name(), pair.value())).chain(le.map(|le| ("le", le)));
    let mut separator = '{';
    for (name, value) in labels {
        write!(out, "{separator}{name}=\"")?;
        escape(out, value);
        out.push('"');
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    writeln!(out, " {value}")
}

fn escape(out: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// Whether a client with this `Accept` header is to get OpenMetrics rather than the Prometheus text format.
pub(super) fn is_preferred(accept: &str) -> bool {
    let best = |wanted: &[&str]| {
        let qualities = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next()?;
            wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(media)).then(|| {
                let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
                quality.map_or(Some(1.0), |quality| quality.parse::<f32>().ok()).unwrap_or(0.0)
            })
        });
        qualities.fold(0.0, f32::max)
    };
    let open = best(&["application/openmetrics-text"]);
    open > 0.0 && open >= best(&["text/plain"])
}
