//! Every metric family there is, in one table, and the page that a scrape fills.

use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

/// Declares [`Family`] together with the table of names, types and help.
macro_rules! families {
    ($($id:ident $kind:ident $name:literal $help:literal)*) => {
        #[derive(Debug, Clone, Copy)]
        pub(super) enum Family { $($id),* }

        pub(super) const TABLE: &[(&str, MetricType, &str)] = &[$(($name, MetricType::$kind, $help)),*];
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
    SubsetRequests COUNTER "pillion_subset_requests_total" "Requests that went to a subset of a service's endpoints, by status code."
    SubsetErrors COUNTER "pillion_subset_errors_total" "Those of them that failed: a 5xx, a gRPC status that says so, or none because of the upstream."
    SubsetDuration HISTOGRAM "pillion_subset_request_duration_seconds" "From the end of a request's head to the end of its response, by subset."
    SubsetFallbacks COUNTER "pillion_subset_fallbacks_total" "Requests for a subset that went elsewhere, because nobody in it could take them."
    SubsetEndpoints GAUGE "pillion_subset_endpoints" "Endpoints of a subset that can take requests."
    MirrorRequests COUNTER "pillion_mirror_requests_total" "Copies of requests that were answered, or failed, by status code."
    MirrorSkipped COUNTER "pillion_mirror_skipped_total" "Copies of requests that were to be sent and were not, by reason."
    MirrorDuration HISTOGRAM "pillion_mirror_duration_seconds" "From when a copy of a request was sent to the end of its response."
    MirrorInFlight GAUGE "pillion_mirror_in_flight" "Copies of requests that have not ended, those included whose body is still on its way."
    MirrorCompared COUNTER "pillion_mirror_compared_total" "Requests whose status was compared with their copy's, by result."
    MirrorLatency HISTOGRAM "pillion_mirror_latency_ratio" "How long a copy's response took to begin, divided by how long the request's own took."
    InboundRequests COUNTER "pillion_inbound_requests_total" "Requests to the local application, by caller and status code."
    InboundErrors COUNTER "pillion_inbound_errors_total" "Those of them that failed: a 5xx, a gRPC status that says so, or none because of the application, by caller."
    InboundDuration HISTOGRAM "pillion_inbound_request_duration_seconds" "From the end of a request's head to the end of its response, by caller."
    AppHealthy GAUGE "pillion_app_healthy" "1 while the local application passes its checks."
    Connections GAUGE "pillion_connections" "Open connections from clients."
    // Not `pillion_connections_total`: in OpenMetrics that is the gauge's own name.
    ConnectionsOpened COUNTER "pillion_connections_accepted_total" "Connections accepted from clients."
    RequestsRejected COUNTER "pillion_requests_rejected_total" "Requests answered, and TCP connections closed, before it was known which service they are for, by reason."
    ConnectionsRefused COUNTER "pillion_connections_refused_total" "Connections closed at once, by reason."
    PoolConnections GAUGE "pillion_pool_connections" "Connections to upstreams, by whether they carry a request."
    PoolOpened COUNTER "pillion_pool_opened_total" "Connections opened to upstreams."
    PoolClosed COUNTER "pillion_pool_closed_total" "Connections to upstreams that ended, by reason."
    PoolConnectFailures COUNTER "pillion_pool_connect_failures_total" "Connections to upstreams that could not be opened."
    TcpOpen GAUGE "pillion_tcp_connections" "TCP connections being carried, or being connected to an endpoint."
    TcpClosed COUNTER "pillion_tcp_closed_total" "TCP connections that ended: done if both sides had sent all, else why."
    TcpDuration HISTOGRAM "pillion_tcp_duration_seconds" "From when a TCP connection was accepted to its end."
    TcpSent COUNTER "pillion_tcp_sent_bytes_total" "Bytes of TCP connections to the endpoints."
    TcpReceived COUNTER "pillion_tcp_received_bytes_total" "Bytes of TCP connections from the endpoints."
    UdpOpen GAUGE "pillion_udp_sessions" "UDP sessions: clients whose datagrams go to one endpoint."
    UdpEnded COUNTER "pillion_udp_sessions_ended_total" "UDP sessions that ended: done if all answers had come or nothing came any more, else why."
    UdpDuration HISTOGRAM "pillion_udp_session_duration_seconds" "From a UDP session's first datagram to its end."
    UdpSent COUNTER "pillion_udp_sent_datagrams_total" "Datagrams to the endpoints."
    UdpSentBytes COUNTER "pillion_udp_sent_bytes_total" "Bytes of datagrams to the endpoints."
    UdpReceived COUNTER "pillion_udp_received_datagrams_total" "Datagrams from the endpoints."
    UdpReceivedBytes COUNTER "pillion_udp_received_bytes_total" "Bytes of datagrams from the endpoints."
    UdpDropped COUNTER "pillion_udp_dropped_total" "Datagrams that went nowhere, by reason."
    DnsQueries COUNTER "pillion_dns_queries_total" "DNS questions of applications, by outcome: answered, no_data and nxdomain for services' names, forwarded for others' that another server has answered, failed (SERVFAIL), malformed."
    Endpoints GAUGE "pillion_endpoints" "Endpoints, by state."
    Ejections COUNTER "pillion_ejections_total" "Endpoints kept out because of what their traffic showed, by cause."
    HealthChecks COUNTER "pillion_health_checks_total" "Active checks of endpoints, by result."
    Panic GAUGE "pillion_panic" "1 while so few endpoints are available that all are used."
    ZoneLeft COUNTER "pillion_zone_left_total" "Tries that were sent to another zone, where balancing looks at zones."
    TableSwaps COUNTER "pillion_table_swaps_total" "New sets of endpoints put in use."
    DiscoveryAge GAUGE "pillion_discovery_age_seconds" "Time since the source last confirmed its set of instances."
    DiscoveryFailures COUNTER "pillion_discovery_failures_total" "Failures of the source."
    DiscoveryChanges COUNTER "pillion_discovery_changes_total" "Changed sets of instances from the source."
    DiscoveryUp GAUGE "pillion_discovery_up" "1 for a source that has answered and does not fail now."
    DiscoveryInUse GAUGE "pillion_discovery_in_use" "1 for a source whose instances are in use."
    DiscoverySnapshot GAUGE "pillion_discovery_from_snapshot" "1 while no source has answered and what was kept on disk is in use."
    DiscoveryHeld GAUGE "pillion_discovery_held" "Endpoints in use that are gone from the registry, far too many at once, and still answer."
    RegistrationState GAUGE "pillion_registration_state" "1 for the state that the local instance's registration is in."
    RegistrationTtl GAUGE "pillion_registration_ttl_seconds" "How long the registry would keep the entry without a renewal."
    RegistrationDelay GAUGE "pillion_registration_renewal_delay_seconds" "From when the last renewal was due to its end."
    RegistrationRenewals COUNTER "pillion_registration_renewals_total" "Renewals that found the entry as it was put."
    RegistrationFailures COUNTER "pillion_registration_failures_total" "Calls that the registry did not answer, or refused."
    RegistrationLost COUNTER "pillion_registration_lost_total" "Times that the entry was gone, or not as it was put, and was put again."
    RoutesUpdates COUNTER "pillion_routes_updates_total" "Values of routes in the store that were read, by whether they were accepted."
    RoutesRejected GAUGE "pillion_routes_rejected" "1 while the store has routes for the service that are refused."
    StoreUp GAUGE "pillion_store_up" "1 while the part of the registry's store below the path has answered and does not fail."
    RolloutPercent GAUGE "pillion_rollout_canary_percent" "The canary's share that the rollout's state in the store says."
    RolloutPhase GAUGE "pillion_rollout_phase" "1 for the phase that the rollout is in."
    RolloutLeading GAUGE "pillion_rollout_leading" "1 while this pillion decides about the rollout."
    RolloutUnattended GAUGE "pillion_rollout_unattended" "1 while the rollout is in progress and nobody has looked at it for longer than who decides takes."
    RolloutDecisions COUNTER "pillion_rollout_decisions_total" "Decisions of this pillion that said anything new, and what it was asked to do by hand, by verdict."
    RolloutFailures COUNTER "pillion_rollout_failures_total" "Looks of this pillion that came to nothing, because the store or Prometheus failed."
    SnapshotWrites COUNTER "pillion_snapshot_writes_total" "Snapshots of services written to disk."
    SnapshotErrors COUNTER "pillion_snapshot_errors_total" "Snapshots that could not be written, could not be read, or were put aside as corrupt, by kind."
    ConfigReloads COUNTER "pillion_config_reloads_total" "Reloads of the config, by result."
    Draining GAUGE "pillion_draining" "0 until pillion is to end; then 1 while it deregisters, 2 while callers hear of that, 3 without new inbound connections, 4 without any new ones, 5 while it cuts requests off."
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
