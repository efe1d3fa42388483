//! A TLS stream that we dialled. In TLS 1.3 our side of the handshake is done before the peer has
//! looked at our certificate, so that its refusal comes with the first read. It is told apart from
//! other errors there: no byte of the application was looked at, and the request may go elsewhere.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::AlertDescription as Alert;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::net::{CERTIFICATE_REFUSED, Io};

/// What a peer says of a certificate that it does not accept (RFC 8446 §6.2).
const REFUSALS: [Alert; 8] = [
    Alert::BadCertificate,
    Alert::UnsupportedCertificate,
    Alert::CertificateRevoked,
    Alert::CertificateExpired,
    Alert::CertificateUnknown,
    Alert::CertificateRequired,
    Alert::UnknownCA,
    Alert::AccessDenied,
];

/// The stream.
#[derive(Debug)]
pub(super) struct Dialled<I>(pub(super) TlsStream<I>);

impl<I: Io> Io for Dialled<I> {
    fn reset_on_drop(&self) {
        self.0.reset_on_drop();
    }
}

/// An error of a read, of kind [`CERTIFICATE_REFUSED`] if it is that.
fn explain(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) if REFUSALS.contains(alert) => io::Error::new(
            CERTIFICATE_REFUSED,
            format!("the peer does not accept our certificate: {alert:?}"),
        ),
        _ => error,
    }
}

impl<I: Io> AsyncRead for Dialled<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf).map_err(explain)
    }
}

impl<I: Io> AsyncWrite for Dialled<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
