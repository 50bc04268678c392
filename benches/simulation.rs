//! Many sidecars before many endpoints, of which one is slow and one is dead, in virtual time: the balancer, the live numbers
//! and the breakers are the real ones; connections and servers are not. `cargo bench --bench simulation` prints a table for
//! each case and draws `docs/balancing.svg`; `cargo test` runs a small version and looks at the outcome.

use pillion::{
    cluster::{
        Endpoint, Live,
        balance::{Ask, Selector},
        endpoint::InFlight,
        health::{Choice, Outcome},
        outlier::{Detector, PERIOD},
    },
    config::{Balance, Policy, Service},
    registry::Instance,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const POLICIES: [Policy; 6] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::LeastConnections,
    Policy::RoundRobin,
    Policy::Random,
    Policy::ResponseTime,
];

/// Of a healthy server, on average; exponentially distributed.
const SERVICE_TIME: Duration = Duration::from_millis(10);
/// After this time a request is given up. As `timeouts.request`.
const TIMEOUT: Duration = Duration::from_secs(15);
/// What it takes to be told that nobody listens.
const REFUSAL: Duration = Duration::from_micros(500);
const MAX_TRIES: usize = 3;
/// Until then all servers are healthy, and nothing is counted.
const WARM_UP: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Case {
    sidecars: usize,
    servers: usize,
    /// Requests per second of each sidecar.
    rate: f64,
    /// Requests that a server works on at one time; others wait.
    workers: usize,
    slow: usize,
    dead: usize,
    long: Duration,
}

/// What came of it.
struct Outcomes {
    /// Of each request, in order.
    latencies: Vec<Duration>,
    failed: usize,
    timed_out: usize,
    /// Standard deviation over mean of the requests that the healthy servers have at one time.
    imbalance: f64,
    /// Requests to the slow servers, in percent of an even share.
    to_slow: f64,
}

impl Outcomes {
    fn percentile(&self, percent: f64) -> Duration {
        self.latencies[((self.latencies.len() - 1) as f64 * percent / 100.0) as usize]
    }
}

enum Event {
    Arrival { sidecar: usize },
    Done { request: usize },
    Refused { request: usize },
    Timeout { request: usize },
    Tick { sidecar: usize },
    Sample,
}

struct Sidecar {
    endpoints: Vec<Arc<Endpoint>>,
    selector: Selector,
    detector: Detector,
}

struct Server {
    speed: Speed,
    busy: usize,
    waiting: VecDeque<usize>,
    requests: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Speed {
    Healthy,
    /// Takes twenty times as long.
    Slow,
    Dead,
}

struct Request {
    sidecar: usize,
    server: usize,
    started: Instant,
    sent: Instant,
    tried: Vec<Arc<Endpoint>>,
    in_flight: Option<InFlight>,
}

struct Simulation {
    case: Case,
    service: Service,
    now: Instant,
    end: Instant,
    counted_from: Instant,
    sidecars: Vec<Sidecar>,
    servers: Vec<Server>,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    /// What is to happen, by the number in `events`.
    scheduled: Vec<Option<Event>>,
    outcomes: Outcomes,
    samples: usize,
}

impl Simulation {
    fn run(case: Case, policy: Policy) -> Outcomes {
        fastrand::seed(7);
        let service = Service { balance: Balance { policy, ..Balance::default() }, ..Service::default() };
        let speed = |number| match number {
            _ if number < case.slow => Speed::Slow,
            _ if number < case.slow + case.dead => Speed::Dead,
            _ => Speed::Healthy,
        };
        let server = |number| Server { speed: speed(number), busy: 0, waiting: VecDeque::new(), requests: 0 };
        let sidecar = |_| {
            let endpoints: Vec<_> = (0..case.servers).map(endpoint).collect();
            let selector = Selector::new(&service.balance, None, &endpoints, |_| true);
            Sidecar { endpoints, selector, detector: Detector::default() }
        };
        let sidecars: Vec<_> = (0..case.sidecars).map(sidecar).collect();
        let now = Instant::now();
        let mut simulation = Self {
            case,
            now,
            end: now + WARM_UP + case.long,
            counted_from: now + WARM_UP,
            sidecars,
            servers: (0..case.servers).map(server).collect(),
            requests: Vec::new(),
            events: BinaryHeap::new(),
            scheduled: Vec::new(),
            outcomes: Outcomes { latencies: Vec::new(), failed: 0, timed_out: 0, imbalance: 0.0, to_slow: 0.0 },
            samples: 0,
            service,
        };
        for sidecar in 0..case.sidecars {
            let (first, tick) = (simulation.gap(), PERIOD.mul_f64(fastrand::f64()));
            simulation.schedule(first, Event::Arrival { sidecar });
            simulation.schedule(tick, Event::Tick { sidecar });
        }
        simulation.schedule(WARM_UP, Event::Sample);
        simulation.go()
    }

    fn go(mut self) -> Outcomes {
        while let Some(Reverse((at, number))) = self.events.pop() {
            if at >= self.end {
                break;
            }
            self.now = at;
            match self.scheduled[number as usize].take() {
                Some(Event::Arrival { sidecar }) => self.arrive(sidecar),
                Some(Event::Done { request }) => self.done(request),
                Some(Event::Refused { request }) => self.refused(request),
                Some(Event::Timeout { request }) => self.timeout(request),
                Some(Event::Tick { sidecar }) => {
                    let Sidecar { endpoints, selector, detector } = &mut self.sidecars[sidecar];
                    if !detector.tick(endpoints, &self.service, at).is_empty() {
                        selector.recount(endpoints, self.service.panic_threshold, at);
                    }
                    self.schedule(PERIOD, Event::Tick { sidecar });
                }
                Some(Event::Sample) => self.sample(),
                None => {}
            }
        }
        self.finish()
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.events.push(Reverse((self.now + after, self.scheduled.len() as u64)));
        self.scheduled.push(Some(event));
    }

    /// Until a sidecar's next request.
    fn gap(&self) -> Duration {
        exponential(Duration::from_secs_f64(1.0 / self.case.rate))
    }

    fn arrive(&mut self, sidecar: usize) {
        let gap = self.gap();
        self.schedule(gap, Event::Arrival { sidecar });
        let (started, sent) = (self.now, self.now);
        let request = self.requests.len();
        self.requests.push(Request { sidecar, server: 0, started, sent, tried: Vec::new(), in_flight: None });
        self.schedule(TIMEOUT, Event::Timeout { request });
        self.send(request);
    }

    fn send(&mut self, number: usize) {
        let request = &mut self.requests[number];
        let Sidecar { endpoints, selector, .. } = &self.sidecars[request.sidecar];
        let Some((server, choice)) = selector.pick(endpoints, Ask::default(), &request.tried, self.now) else {
            return self.fail(number);
        };
        let in_flight = InFlight::start(endpoints[server].clone(), choice);
        (request.server, request.sent, request.in_flight) = (server, self.now, Some(in_flight));
        let counts = self.now >= self.counted_from && choice != Choice::Probe;
        let server = &mut self.servers[server];
        server.requests += usize::from(counts);
        if server.speed == Speed::Dead && self.now >= self.counted_from {
            self.schedule(REFUSAL, Event::Refused { request: number });
        } else if server.busy < self.case.workers {
            self.work(number);
        } else {
            server.waiting.push_back(number);
        }
    }

    fn work(&mut self, request: usize) {
        let server = &mut self.servers[self.requests[request].server];
        server.busy += 1;
        let is_slow = server.speed == Speed::Slow && self.now >= self.counted_from;
        let mean = if is_slow { SERVICE_TIME * 20 } else { SERVICE_TIME };
        self.schedule(exponential(mean), Event::Done { request });
    }

    fn done(&mut self, number: usize) {
        let request = &self.requests[number];
        let (server, started) = (request.server, request.started);
        if request.in_flight.is_some() {
            self.sidecars[request.sidecar].endpoints[server].live.observe(self.now - request.sent, self.now);
            self.tell(number, Outcome::Success);
            self.count(started);
        }
        self.servers[server].busy -= 1;
        while let Some(next) = self.servers[server].waiting.pop_front() {
            if self.requests[next].in_flight.is_some() {
                return self.work(next);
            }
        }
    }

    fn timeout(&mut self, number: usize) {
        let request = &self.requests[number];
        if request.in_flight.is_some() {
            self.sidecars[request.sidecar].endpoints[request.server].live.observe(self.now - request.sent, self.now);
            self.tell(number, Outcome::Failure);
            self.outcomes.timed_out += 1;
            self.count(self.requests[number].started);
        }
    }

    fn refused(&mut self, number: usize) {
        self.tell(number, Outcome::Failure);
        let request = &mut self.requests[number];
        request.tried.push(self.sidecars[request.sidecar].endpoints[request.server].clone());
        if request.tried.len() < MAX_TRIES { self.send(number) } else { self.fail(number) }
    }

    /// As the proxy does: the breaker is asked at once where a request says so.
    fn tell(&mut self, request: usize, outcome: Outcome) {
        let request = &mut self.requests[request];
        let limit = self.service.breaker.consecutive_failures;
        if request.in_flight.take().is_some_and(|mut in_flight| in_flight.tell(outcome, limit)) {
            let Sidecar { endpoints, selector, detector } = &mut self.sidecars[request.sidecar];
            if !detector.review(endpoints, &self.service, self.now).is_empty() {
                selector.recount(endpoints, self.service.panic_threshold, self.now);
            }
        }
    }

    fn fail(&mut self, request: usize) {
        self.outcomes.failed += 1;
        self.count(self.requests[request].started);
    }

    fn count(&mut self, started: Instant) {
        if started >= self.counted_from {
            self.outcomes.latencies.push(self.now - started);
        }
    }

    /// How uneven the healthy servers are loaded now.
    fn sample(&mut self) {
        let healthy = self.servers.iter().filter(|server| server.speed == Speed::Healthy);
        let loads: Vec<f64> = healthy.map(|server| (server.busy + server.waiting.len()) as f64).collect();
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let variance = loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / loads.len() as f64;
        if mean > 0.0 {
            self.outcomes.imbalance += variance.sqrt() / mean;
            self.samples += 1;
        }
        self.schedule(Duration::from_millis(50), Event::Sample);
    }

    fn finish(mut self) -> Outcomes {
        // Those that still wait have waited that long at least.
        for request in self.requests.iter().filter(|request| request.in_flight.is_some()) {
            if request.started >= self.counted_from {
                self.outcomes.latencies.push(self.end - request.started);
            }
        }
        self.outcomes.latencies.sort_unstable();
        self.outcomes.imbalance /= self.samples as f64;
        let requests = |speed| self.servers.iter().filter(move |s| s.speed == speed).map(|s| s.requests).sum::<usize>();
        let healthy = requests(Speed::Healthy) as f64 / (self.case.servers - self.case.slow - self.case.dead) as f64;
        self.outcomes.to_slow = requests(Speed::Slow) as f64 / self.case.slow as f64 / healthy * 100.0;
        self.outcomes
    }
}

fn endpoint(number: usize) -> Arc<Endpoint> {
    let address = format!("10.0.{}.{}:80", number / 250, number % 250 + 1).parse().unwrap();
    Arc::new(Endpoint { instance: Instance::new(number.to_string(), address), live: Arc::new(Live::new(None)) })
}

fn exponential(mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - fastrand::f64()).ln())
}

const LARGE: Case =
    Case { sidecars: 1000, servers: 100, rate: 12.0, workers: 2, slow: 1, dead: 1, long: Duration::from_secs(30) };

fn main() {
    if std::env::args().any(|argument| argument == "--bench") {
        large();
    } else if std::env::args().skip(1).all(|argument| argument.starts_with('-')) {
        small();
    }
}

fn large() {
    let cases = [
        ("1,000 sidecars, 100 servers, all healthy", Case { slow: 0, dead: 0, ..LARGE }),
        ("1,000 sidecars, 100 servers, one slow, one dead", LARGE),
        ("10 sidecars, 100 servers, one slow, one dead", Case { sidecars: 10, rate: 1200.0, ..LARGE }),
    ];
    for (name, case) in cases {
        println!("\n{name}\n");
        println!(
            "| policy | p50 | p99 | p99.9 | given up | imbalance | to the slow one |\n|---|---|---|---|---|---|---|"
        );
        let mut rows = Vec::new();
        for policy in POLICIES {
            let outcomes = Simulation::run(case, policy);
            let [p50, p99, p999] = [50.0, 99.0, 99.9].map(|percent| outcomes.percentile(percent));
            let slow = if case.slow == 0 { "-".into() } else { format!("{:.0} %", outcomes.to_slow) };
            println!(
                "| `{}` | {} | {} | {} | {} | {:.2} | {slow} |",
                policy.as_str(),
                text(p50),
                text(p99),
                text(p999),
                outcomes.timed_out,
                outcomes.imbalance
            );
            assert_eq!(outcomes.failed, 0, "the dead one is noticed by nobody");
            rows.push((policy, [p50, p99, p999]));
        }
        if case.sidecars == 10 {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/balancing.svg");
            std::fs::write(path, drawing(name, &rows)).expect("the drawing can be written");
        }
    }
}

fn text(latency: Duration) -> String {
    let ms = latency.as_secs_f64() * 1000.0;
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

/// Three points for each policy, on a scale from 1 ms to 100 s.
fn drawing(title: &str, rows: &[(Policy, [Duration; 3])]) -> String {
    const COLOURS: [(&str, &str); 3] = [("#4c9f70", "p50"), ("#e0a030", "p99"), ("#c0392b", "p99.9")];
    let place = |ms: f64| 160.0 + 110.0 * ms.log10();
    let height = 70 + 26 * rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"730\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-weight=\"bold\">{title}</text>\n"
    );
    for (number, (colour, name)) in COLOURS.iter().enumerate() {
        let x = 520 + 65 * number;
        let _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"16\" r=\"5\" fill=\"{colour}\"/><text x=\"{}\" y=\"20\">{name}</text>",
            x + 9
        );
    }
    for (ms, label) in [(1.0, "1 ms"), (10.0, "10 ms"), (100.0, "100 ms"), (1e3, "1 s"), (1e4, "10 s"), (1e5, "100 s")]
    {
        let (x, bottom) = (place(ms), height - 26);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.0}\" y1=\"34\" x2=\"{x:.0}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.0}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{label}</text>",
            height - 9
        );
    }
    for (number, (policy, latencies)) in rows.iter().enumerate() {
        let y = 50 + 26 * number;
        let [from, .., to] = latencies.map(|latency| place(latency.as_secs_f64() * 1000.0));
        let _ = writeln!(svg, "<text x=\"10\" y=\"{}\">{}</text>", y + 4, policy.as_str());
        let _ = writeln!(svg, "<line x1=\"{from:.0}\" y1=\"{y}\" x2=\"{to:.0}\" y2=\"{y}\" stroke=\"#999\"/>");
        for (latency, (colour, _)) in latencies.iter().zip(COLOURS) {
            let x = place(latency.as_secs_f64() * 1000.0);
            let _ = writeln!(svg, "<circle cx=\"{x:.0}\" cy=\"{y}\" r=\"5\" fill=\"{colour}\"/>");
        }
    }
    svg + "</svg>\n"
}

/// What has to hold, at a size that takes a second.
fn small() {
    let case = Case { sidecars: 10, servers: 20, rate: 120.0, long: Duration::from_secs(10), ..LARGE };
    let [peak_ewma, turn] = [Policy::PeakEwma, Policy::RoundRobin].map(|policy| Simulation::run(case, policy));
    assert_eq!((peak_ewma.failed, turn.failed), (0, 0), "the dead one is noticed by nobody");
    let (p99, turn) = (peak_ewma.percentile(99.0), turn.percentile(99.0));
    assert!(p99 * 3 < turn, "peak-ewma passes by the slow one: {p99:?} and {turn:?}");
    let both = |case| [Policy::LeastRequest, Policy::Random].map(|policy| Simulation::run(case, policy));
    let [least_request, random] = both(Case { sidecars: 1, rate: 1200.0, slow: 0, dead: 0, ..case });
    let (even, uneven) = (least_request.imbalance, random.imbalance);
    assert!(even < uneven * 0.9, "who sees all of the load spreads it more evenly: {even} and {uneven}");
    // Each of many sidecars sees next to nothing of the load, but still which of its own requests do not come back.
    let [least_request, random] = both(Case { sidecars: 200, rate: 6.0, ..case });
    let (few, many) = (least_request.to_slow, random.to_slow);
    assert!(few * 2.0 < many, "least-request does not turn into random: {few} and {many}");
}
