//! Cases from public bug reports against a running proxy, by their ids: scripted clients on one
//! side, scripted endpoints on the other, on loopback addresses.

mod balance;
mod grpc;
mod http1;
mod http1_framing;
mod http1_messages;
mod http2;
mod http2_abuse;
mod http2_fields;
mod http2_pings;
mod http2_tunnels;
mod limits;
mod renewal;
mod retries;
mod tcp;
mod tcp_life;
mod tls;
mod uploads;
