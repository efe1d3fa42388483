//! Does what the command line says.

use std::{
    io::{Read as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::CommandFactory as _;
use outrigger_proto::outrigger::control::v1 as pb;

use super::{
    Client, EXIT_NOT_LIVE,
    args::{Apply, Args, Ca, Command, Delete, Endpoint, Report, ResourceKind, Token},
    kube, said, show,
};
use crate::{clock::Clock, model::parse_manifest};

/// The commands that need no control plane.
pub(super) fn local(command: Command, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match command {
        Command::Install(args) => kube::install(&args, out)?,
        Command::Inject(args) => {
            let manifest = read(&args.file)?;
            kube::inject(&args, &manifest, out, &mut std::io::stderr())?;
        }
        Command::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(shell, &mut command, "outrigger", out);
        }
        // The others need one.
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn run(
    client: Client,
    command: Command,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    match command {
        Command::Apply(args) => return apply(client, args, out).await,
        Command::Delete(args) => return delete(client, args, out).await,
        Command::Endpoint(endpoint) => self::endpoint(client, endpoint, out).await?,
        Command::Watch {
            kind,
            namespace,
            output,
        } => watch(client, kind, namespace, output, out).await?,
        Command::Token(token) => self::token(client, token, out).await?,
        Command::Ca(ca) => self::ca(client, ca, out).await?,
        other => show(client, other, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn token(
    mut client: Client,
    token: Token,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match token {
        Token::Create {
            namespace,
            service_account,
            ttl,
            output,
        } => {
            let request = pb::CreateTokenRequest {
                namespace,
                service_account,
                ttl: Some(proto_duration(ttl)?),
            };
            let answer = client.create_token(request).await.map_err(|s| said(&s))?;
            show::token(out, &answer.into_inner(), output)
        }
        Token::List { namespace, output } => {
            let request = pb::ListTokensRequest {
                namespace: namespace.unwrap_or_default(),
            };
            let answer = client.list_tokens(request).await.map_err(|s| said(&s))?;
            show::tokens(out, &answer.into_inner().tokens, now(), output)
        }
        Token::Revoke { ids, output } => {
            let request = pb::RevokeTokensRequest { ids };
            let answer = client.revoke_tokens(request).await.map_err(|s| said(&s))?;
            show::revoked(out, &answer.into_inner().revoked, output)
        }
    }
}

async fn ca(mut client: Client, ca: Ca, out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    let (roots, output) = match ca {
        Ca::Rotate { overlap, output } => {
            let request = pb::RotateRootRequest {
                overlap: overlap.map(proto_duration).transpose()?,
            };
            let answer = client.rotate_root(request).await.map_err(|s| said(&s))?;
            (answer.into_inner().roots, Some(output))
        }
        list @ (Ca::List { .. } | Ca::Bundle) => {
            let answer = client.list_roots(pb::ListRootsRequest {}).await;
            let roots = answer.map_err(|s| said(&s))?.into_inner().roots;
            let output = match list {
                Ca::List { output } => Some(output),
                _ => None,
            };
            (roots, output)
        }
    };
    match output {
        Some(output) => show::roots(out, &roots, now(), output),
        None => {
            roots
                .iter()
                .try_for_each(|root| write!(out, "{}", root.pem))?;
            Ok(())
        }
    }
}

/// What times are counted from in what is shown.
pub(super) fn now() -> u64 {
    Clock::system().unix()
}

/// The commands that only look.
async fn show(
    mut client: Client,
    command: Command,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match command {
        Command::Get {
            kind,
            name,
            namespace,
            output,
        } => {
            let key = pb::ObjectKey {
                kind,
                namespace,
                name,
            };
            let request = pb::GetRequest { key: Some(key) };
            let answer = client.get(request).await.map_err(|s| said(&s))?;
            show::objects(out, answer.into_inner().object.as_slice(), output)
        }
        Command::List {
            kind,
            namespace,
            output,
        } => {
            let objects = list(client, kind, namespace).await?;
            show::objects(out, &objects, output)
        }
        Command::Endpoints {
            service,
            namespace,
            output,
        } => {
            let objects = list(client, Some("Service".to_owned()), namespace.clone()).await?;
            if let Some(name) = &service
                && !objects
                    .iter()
                    .any(|o| o.key.as_ref().is_some_and(|k| k.name == *name))
            {
                let place = namespace.map_or_else(String::new, |n| format!(" in namespace {n}"));
                anyhow::bail!("there is no Service {name:?}{place}");
            }
            show::endpoints(out, &objects, service.as_deref(), output)
        }
        Command::ConfigDump {
            proxy,
            kind,
            name,
            output,
        } => {
            let request = pb::ConfigDumpRequest { proxy };
            let answer = client.config_dump(request).await.map_err(|s| said(&s))?;
            let kind = kind.map(ResourceKind::url);
            let dump = answer.into_inner().json;
            show::config_dump(out, &dump, kind, name.as_deref(), output)
        }
        Command::Status { output } => {
            let answer = client.proxy_status(pb::ProxyStatusRequest {}).await;
            let status = answer.map_err(|s| said(&s))?.into_inner();
            show::proxies(out, &[(None, status)], now(), output)
        }
        // Those that do something are done already.
        _ => Ok(()),
    }
}

async fn list(
    mut client: Client,
    kind: Option<String>,
    namespace: Option<String>,
) -> anyhow::Result<Vec<pb::Object>> {
    let request = pb::ListRequest {
        kind: kind.unwrap_or_default(),
        namespace: namespace.unwrap_or_default(),
    };
    let answer = client.list(request).await.map_err(|s| said(&s))?;
    Ok(answer.into_inner().objects)
}

async fn watch(
    mut client: Client,
    kind: Option<String>,
    namespace: Option<String>,
    output: Report,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let request = pb::WatchRequest {
        kind: kind.unwrap_or_default(),
        namespace: namespace.unwrap_or_default(),
    };
    let answer = client.watch(request).await.map_err(|s| said(&s))?;
    let mut states = answer.into_inner();
    while let Some(state) = states.message().await.map_err(|s| said(&s))? {
        show::change(out, &state, output)?;
        out.flush()?;
    }
    Ok(())
}

async fn endpoint(
    mut client: Client,
    endpoint: Endpoint,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let (revision, output) = match endpoint {
        Endpoint::Register(args) => {
            let output = args.output;
            let endpoint = pb::Endpoint {
                address: args.address,
                ports: args.port.into_iter().collect(),
                service_account: args.service_account.unwrap_or_default(),
                workload: args.workload.unwrap_or_default(),
                zone: args.zone.unwrap_or_default(),
                weight: args.weight,
                mesh: args.no_mesh.then_some(false),
            };
            let request = pb::RegisterEndpointRequest {
                namespace: args.namespace,
                service: args.service,
                endpoint: Some(endpoint),
            };
            let answer = client.register_endpoint(request).await;
            (answer.map_err(|s| said(&s))?.into_inner().revision, output)
        }
        Endpoint::Deregister {
            service,
            address,
            namespace,
            output,
        } => {
            let request = pb::DeregisterEndpointRequest {
                namespace,
                service,
                address,
            };
            let answer = client.deregister_endpoint(request).await;
            (answer.map_err(|s| said(&s))?.into_inner().revision, output)
        }
    };
    show::revision(out, revision, output)
}

fn proto_duration(value: Duration) -> anyhow::Result<prost_types::Duration> {
    value.try_into().context("the duration is too long")
}

/// The files' text; `-` is standard input.
fn read(files: &[PathBuf]) -> anyhow::Result<String> {
    let mut text = String::new();
    for file in files {
        if !text.is_empty() {
            text.push_str("\n---\n");
        }
        if file == Path::new("-") {
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input")?;
        } else {
            let one = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            text.push_str(&one);
        }
    }
    Ok(text)
}

async fn apply(
    mut client: Client,
    args: Apply,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    let request = pb::ApplyRequest {
        manifest: read(&args.file)?,
        dry_run: args.dry_run,
        default_namespace: args.namespace,
    };
    let answer = client
        .apply(request)
        .await
        .map_err(|s| said(&s))?
        .into_inner();
    let done = show::Done {
        revision: answer.revision,
        outcomes: &answer.outcomes,
        warnings: &answer.warnings,
        dry_run: args.dry_run,
    };
    let waiting = (args.wait && !args.dry_run).then_some(args.timeout);
    finish(client, &done, waiting, args.output, out).await
}

/// Says what was done, and waits for it if asked to.
async fn finish(
    client: Client,
    done: &show::Done<'_>,
    waiting: Option<Duration>,
    output: Report,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    // People see at once what was done; programs get one document with everything.
    if output == Report::Text {
        show::done(out, done, None, output)?;
        out.flush()?;
    }
    let waited = match waiting {
        None => None,
        Some(timeout) => Some(wait(client, done.revision, timeout).await?),
    };
    match (&waited, output) {
        (Some(waited), Report::Text) => show::waited(out, done.revision, waited)?,
        (None, Report::Text) => {}
        _ => show::done(out, done, waited.as_ref(), output)?,
    }
    let live = waited.is_none_or(|w| w.rejected.is_empty() && w.pending.is_empty());
    Ok(if live {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_LIVE)
    })
}

/// Until every proxy has answered the revision.
async fn wait(
    mut client: Client,
    revision: u64,
    timeout: Duration,
) -> anyhow::Result<pb::WaitRevisionResponse> {
    let request = pb::WaitRevisionRequest {
        revision,
        timeout: Some(proto_duration(timeout)?),
    };
    let waited = client.wait_revision(request).await.map_err(|s| said(&s))?;
    Ok(waited.into_inner())
}

async fn delete(
    mut client: Client,
    args: Delete,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    let keys = if args.file.is_empty() {
        let kind = args.kind.unwrap_or_default();
        let key = |name| pb::ObjectKey {
            kind: kind.clone(),
            namespace: args.namespace.clone(),
            name,
        };
        args.names.into_iter().map(key).collect()
    } else {
        let objects = parse_manifest(&read(&args.file)?, &args.namespace);
        let objects = objects.map_err(|faults| {
            let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
            anyhow::anyhow!(lines.join("\n"))
        })?;
        let key = |object: crate::model::Object| pb::ObjectKey {
            kind: object.key.kind.to_string(),
            namespace: object.key.namespace,
            name: object.key.name,
        };
        objects.into_iter().map(key).collect()
    };
    let request = pb::DeleteRequest {
        keys,
        ignore_missing: args.ignore_not_found,
    };
    let answer = client
        .delete(request)
        .await
        .map_err(|s| said(&s))?
        .into_inner();
    let done = show::Done {
        revision: answer.revision,
        outcomes: &answer.outcomes,
        warnings: &[],
        dry_run: false,
    };
    let waiting = args.wait.then_some(args.timeout);
    finish(client, &done, waiting, args.output, out).await
}
