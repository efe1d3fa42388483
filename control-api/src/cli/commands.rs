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
    args::{Apply, Args, Command, Delete, Endpoint, Token},
    said, show,
};
use crate::model::parse_manifest;

pub(super) async fn run(
    mut client: Client,
    command: Command,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    match command {
        Command::Apply(args) => return apply(client, args, out).await,
        Command::Delete(args) => return delete(client, args, out).await,
        Command::Endpoint(endpoint) => self::endpoint(client, endpoint, out).await?,
        Command::Watch { kind, namespace } => watch(client, kind, namespace, out).await?,
        Command::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(shell, &mut command, "outrigger", out);
        }
        Command::Token(Token::Create {
            namespace,
            service_account,
            ttl,
        }) => {
            let request = pb::CreateTokenRequest {
                namespace,
                service_account,
                ttl: Some(proto_duration(ttl)?),
            };
            let answer = client.create_token(request).await.map_err(|s| said(&s))?;
            writeln!(out, "{}", answer.into_inner().token)?;
        }
        other => show(client, other, out).await?,
    }
    Ok(ExitCode::SUCCESS)
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
            let objects = list(client, Some("Service".to_owned()), namespace).await?;
            show::endpoints(out, &objects, service.as_deref(), output)
        }
        Command::ConfigDump { proxy } => {
            let request = pb::ConfigDumpRequest { proxy };
            let answer = client.config_dump(request).await.map_err(|s| said(&s))?;
            show::json_text(out, &answer.into_inner().json)
        }
        Command::Status { output } => {
            let answer = client.proxy_status(pb::ProxyStatusRequest {}).await;
            show::proxies(out, &answer.map_err(|s| said(&s))?.into_inner(), output)
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
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let request = pb::WatchRequest {
        kind: kind.unwrap_or_default(),
        namespace: namespace.unwrap_or_default(),
    };
    let answer = client.watch(request).await.map_err(|s| said(&s))?;
    let mut states = answer.into_inner();
    while let Some(state) = states.message().await.map_err(|s| said(&s))? {
        show::change(out, &state)?;
        out.flush()?;
    }
    Ok(())
}

async fn endpoint(
    mut client: Client,
    endpoint: Endpoint,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let revision = match endpoint {
        Endpoint::Register(args) => {
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
            answer.map_err(|s| said(&s))?.into_inner().revision
        }
        Endpoint::Deregister {
            service,
            address,
            namespace,
        } => {
            let request = pb::DeregisterEndpointRequest {
                namespace,
                service,
                address,
            };
            let answer = client.deregister_endpoint(request).await;
            answer.map_err(|s| said(&s))?.into_inner().revision
        }
    };
    writeln!(out, "revision {revision}")?;
    Ok(())
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
    show::outcomes(out, &answer.outcomes, args.dry_run)?;
    for warning in &answer.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if args.dry_run || !args.wait {
        return Ok(ExitCode::SUCCESS);
    }
    wait(client, answer.revision, args.timeout, out).await
}

/// Until every proxy has answered the revision; the exit code says whether all took it.
async fn wait(
    mut client: Client,
    revision: u64,
    timeout: Duration,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    let request = pb::WaitRevisionRequest {
        revision,
        timeout: Some(proto_duration(timeout)?),
    };
    let waited = client.wait_revision(request).await.map_err(|s| said(&s))?;
    let waited = waited.into_inner();
    show::waited(out, revision, &waited)?;
    let live = waited.rejected.is_empty() && waited.pending.is_empty();
    Ok(if live {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_LIVE)
    })
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
    show::outcomes(out, &answer.outcomes, false)?;
    if !args.wait {
        return Ok(ExitCode::SUCCESS);
    }
    wait(client, answer.revision, args.timeout, out).await
}
