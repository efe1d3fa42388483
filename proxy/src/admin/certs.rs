//! The certificate and the trust bundle in force (`envoy.admin.v3.Certificates`).

use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use serde_json::{Value, json};

use super::{
    Admin,
    call::{Answer, Call},
    config_dump::stamp,
};
use crate::tls::CertificateView;

const DAY: u64 = 86_400;

/// The page.
pub(super) fn page(admin: &Admin, _: &Call<'_>) -> Answer {
    let Some(identity) = admin.shared.identity.get() else {
        return Answer::json(&json!({ "certificates": [], "identity": null }));
    };
    let now = admin.clock.now();
    Answer::json(&json!({
        "certificates": [{
            "ca_cert": details(&identity.roots_pem, now),
            "cert_chain": details(&identity.chain_pem, now),
        }],
        "identity": identity.id.as_ref().map(ToString::to_string),
        // Renewals are spread by up to a tenth of the life before this.
        "renew_at": stamp(UNIX_EPOCH + Duration::from_secs(identity.renew_at(0.0))),
    }))
}

/// `envoy.admin.v3.CertificateDetails` of each certificate.
fn details(pem: &str, now: UnixTime) -> Vec<Value> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    let readable = all.filter_map(|der| CertificateView::of(&der.ok()?));
    readable.map(|cert| one(&cert, now)).collect()
}

fn one(cert: &CertificateView, now: UnixTime) -> Value {
    let at = |seconds| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
    let names = cert.uris.iter().map(|uri| json!({ "uri": uri }));
    json!({
        "serial_number": cert.serial,
        // Envoy shows neither; tools ask by them when an old root may go (TL-02).
        "subject": cert.subject,
        "issuer": cert.issuer,
        "subject_alt_names": names.collect::<Vec<_>>(),
        // A 64-bit number is a string in proto3 JSON.
        "days_until_expiration": (cert.not_after.saturating_sub(now.as_secs()) / DAY).to_string(),
        "valid_from": at(cert.not_before),
        "expiration_time": at(cert.not_after),
    })
}
