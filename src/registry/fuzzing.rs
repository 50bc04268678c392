//! The backends' decoders, for the targets in `fuzz/`.

pub use super::{
    consul::fuzzing as consul, dns::fuzzing as dns, embedded::fuzzing as embedded, eureka::fuzzing as eureka,
    file::fuzzing as file, kubernetes::fuzzing as kubernetes, nacos::fuzzing as nacos, redis::fuzzing as redis,
    xds::fuzzing as xds, zookeeper::fuzzing as zookeeper,
};
