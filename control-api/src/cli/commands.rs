//! Does what the command line says.

use std::{
    io::{Read as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use outrigger_proto::outrigger::control::v1 as pb;

use super::{
    Client, EXIT_NOT_LIVE,
    args::{Apply, Command, Delete, Token},
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
        Command::Delete(args) => delete(client, args, out).await?,
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
            let answer = client
                .get(request)
                .await
                .map_err(|s| said(&s))?
                .into_inner();
            show::objects(out, answer.object.as_slice(), output)?;
        }
        Command::List {
            kind,
            namespace,
            output,
        } => {
            let request = pb::ListRequest {
                kind: kind.unwrap_or_default(),
                namespace: namespace.unwrap_or_default(),
            };
            let answer = client
                .list(request)
                .await
                .map_err(|s| said(&s))?
                .into_inner();
            show::objects(out, &answer.objects, output)?;
        }
        Command::Status { output } => {
            let answer = client.proxy_status(pb::ProxyStatusRequest {}).await;
            let answer = answer.map_err(|s| said(&s))?.into_inner();
            show::proxies(out, &answer, output)?;
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
    }
    Ok(ExitCode::SUCCESS)
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
    if args.dry_run || !args.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let request = pb::WaitRevisionRequest {
        revision: answer.revision,
        timeout: Some(proto_duration(args.timeout)?),
    };
    let waited = client.wait_revision(request).await.map_err(|s| said(&s))?;
    let waited = waited.into_inner();
    show::waited(out, answer.revision, &waited)?;
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
) -> anyhow::Result<()> {
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
    let answer = client.delete(request).await.map_err(|s| said(&s))?;
    show::outcomes(out, &answer.into_inner().outcomes, false)
}
