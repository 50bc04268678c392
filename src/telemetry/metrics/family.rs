//! Every metric family there is, in one table, and the page that a scrape fills.

use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

/// Declares [`Family`] together with the table of names, types and help.
macro_rules! families {
    ($($id:ident $kind:ident $name:literal $help:literal)*) => {
        #[derive(Debug, Clone, Copy)]
        pub(super) enum Family { $($id),* }

        const TABLE: &[(&str, MetricType, &str)] = &[$(($name, MetricType::$kind, $help)),*];
    };
}

families! {
    BuildInfo GAUGE "pillion_build_info" "Always 1; the labels say what is running."
    Requests COUNTER "pillion_requests_total" "Requests answered, by status code."
    Duration HISTOGRAM "pillion_request_duration_seconds" "From the end of a request's head to the end of its response."
    InFlight GAUGE "pillion_requests_in_flight" "Requests being carried now."
    Waiting GAUGE "pillion_requests_waiting" "Requests that wait because as many as the limit allows are being carried."
    RequestsLimit GAUGE "pillion_requests_limit" "Requests that may be carried at one time."
    RequestBytes COUNTER "pillion_request_bytes_total" "Bytes of request bodies."
    ResponseBytes COUNTER "pillion_response_bytes_total" "Bytes of response bodies."
    Errors COUNTER "pillion_errors_total" "Requests that pillion answered itself, cut off or carried to a fallback, by reason."
    Retries COUNTER "pillion_retries_total" "Further tries of a request, by the reason of the try before."
    RetriesDenied COUNTER "pillion_retries_denied_total" "Further tries that the retry budget did not allow."
    RetriesActive GAUGE "pillion_retries_active" "Further tries that the retry budget allowed and that have not ended, their back-off included."
    Hedges COUNTER "pillion_hedges_total" "Requests that were sent to a second endpoint while the first took long."
    HedgesWon COUNTER "pillion_hedges_won_total" "Those of them that the second endpoint answered."
    Fallbacks COUNTER "pillion_fallbacks_total" "Requests that were answered by a fallback, or were to be, by kind."
    Faults COUNTER "pillion_faults_total" "Faults put into requests on purpose, by kind."
    Connections GAUGE "pillion_connections" "Open connections from clients."
    // Not `pillion_connections_total`: in OpenMetrics that is the gauge's own name.
    ConnectionsOpened COUNTER "pillion_connections_accepted_total" "Connections accepted from clients."
    RequestsRejected COUNTER "pillion_requests_rejected_total" "Requests answered before it was known which service they are for, by reason."
    ConnectionsRefused COUNTER "pillion_connections_refused_total" "Connections closed at once, by reason."
    PoolConnections GAUGE "pillion_pool_connections" "Connections to upstreams, by whether they carry a request."
    PoolOpened COUNTER "pillion_pool_opened_total" "Connections opened to upstreams."
    PoolClosed COUNTER "pillion_pool_closed_total" "Connections to upstreams that ended, by reason."
    PoolConnectFailures COUNTER "pillion_pool_connect_failures_total" "Connections to upstreams that could not be opened."
    Endpoints GAUGE "pillion_endpoints" "Endpoints, by state."
    Ejections COUNTER "pillion_ejections_total" "Endpoints kept out because of what their traffic showed, by cause."
    HealthChecks COUNTER "pillion_health_checks_total" "Active checks of endpoints, by result."
    Panic GAUGE "pillion_panic" "1 while so few endpoints are available that all are used."
    ZoneLeft COUNTER "pillion_zone_left_total" "Tries that were sent to another zone, where balancing looks at zones."
    TableSwaps COUNTER "pillion_table_swaps_total" "New sets of endpoints put in use."
    DiscoveryAge GAUGE "pillion_discovery_age_seconds" "Time since the source last confirmed its set of instances."
    DiscoveryFailures COUNTER "pillion_discovery_failures_total" "Failures of the source."
    DiscoveryChanges COUNTER "pillion_discovery_changes_total" "Changed sets of instances from the source."
    ConfigReloads COUNTER "pillion_config_reloads_total" "Reloads of the config, by result."
    AccessLogDropped COUNTER "pillion_access_log_dropped_total" "Access log lines lost because the writer could not keep up or write."
    Tasks GAUGE "pillion_tasks" "Tasks of the runtime that have not ended, by thread."
    ProcessCpu COUNTER "process_cpu_seconds_total" "User and system CPU time spent."
    ProcessResident GAUGE "process_resident_memory_bytes" "Resident memory."
    ProcessVirtual GAUGE "process_virtual_memory_bytes" "Virtual memory."
    ProcessFds GAUGE "process_open_fds" "Open file descriptors."
    ProcessMaxFds GAUGE "process_max_fds" "The most file descriptors that may be open."
    ProcessThreads GAUGE "process_threads" "Threads."
    ProcessStart GAUGE "process_start_time_seconds" "When the process started, in seconds since 1970."
}

/// One scrape.
pub(super) struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    pub(super) fn new() -> Self {
        let family = |(name, kind, help): &(&str, MetricType, &str)| {
            let mut family = MetricFamily::default();
            family.set_name((*name).to_owned());
            family.set_field_type(*kind);
            family.set_help((*help).to_owned());
            family
        };
        Self { families: TABLE.iter().map(family).collect() }
    }

    /// A counter or a gauge.
    pub(super) fn add(&mut self, family: Family, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        if matches!(self.families[family as usize].get_field_type(), MetricType::COUNTER) {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.families[family as usize].mut_metric().push(metric);
    }

    pub(super) fn add_histogram(&mut self, family: Family, labels: &[(&str, &str)], value: proto::Histogram) {
        let mut metric = labelled(labels);
        metric.set_histogram(value);
        self.families[family as usize].mut_metric().push(metric);
    }

    /// The families that have anything to show.
    pub(super) fn finish(self) -> Vec<MetricFamily> {
        self.families.into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}
