// panva's oidc-provider with its own sign-in and consent pages, for the interop tests: rotation, reuse detection and no
// tolerance for old tokens. The first line of stdin is its settings as JSON: {clients, accessTokenLife,
// refreshTokenLife}; the first line of stdout says where it listens. It ends when stdin does, so never outlives its test.
//
//   GET  /control/log                        what came to the token endpoint and its relatives, and what the server made of it
//   POST /control/settings                   {accessTokenLife, refreshTokenLife, tokenDelay}: seconds; {secretExpired}: of tk-expired
//   POST /control/accounts/SUB/create        nothing: every account is there until it is deleted
//   POST /control/accounts/SUB/withdraw      the member takes the permission back
//   POST /control/accounts/SUB/delete        the account is gone

import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';

import { Provider } from 'oidc-provider';

const input = createInterface({ input: process.stdin });
const settings = JSON.parse((await input[Symbol.asyncIterator]().next()).value);
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();

const http = createServer();
await new Promise((resolve) => { http.listen(0, '127.0.0.1', resolve); });
const issuer = `http://127.0.0.1:${http.address().port}`;

const log = [];
const details = new WeakMap();
const grants = new Map();
const deleted = new Set();

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const provider = new Provider(issuer, {
  clients: settings.clients,
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256' }] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  scopes: ['openid', 'offline_access', 'profile', 'email'],
  claims: { openid: ['sub'], profile: ['name'], email: ['email'] },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  clockTolerance: 0,
  ttl: {
    AccessToken: () => settings.accessTokenLife,
    RefreshToken: () => settings.refreshTokenLife,
    AuthorizationCode: 60,
    IdToken: 3600,
    Grant: 86400,
    Interaction: 600,
    Session: 600,
  },
  features: {
    devInteractions: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
  },
  findAccount: (_ctx, sub) => (deleted.has(sub) ? undefined : {
    accountId: sub,
    claims: () => ({ sub, name: `${sub} of the interop tests`, email: `${sub}@example.test` }),
  }),
});

provider.on('authorization_code.saved', (code) => {
  grants.set(code.accountId, [...(grants.get(code.accountId) ?? []), code.grantId]);
});
for (const event of ['grant.error', 'revocation.error', 'introspection.error', 'server_error']) {
  provider.on(event, (ctx, error) => details.set(ctx, error.error_detail ?? error.message));
}

// The server's own log. Tokens appear as digests: a test compares them with those of the tokens that it knows.
const digest = (text) => text && createHash('sha256').update(text).digest('hex');
provider.use(async (ctx, next) => {
  if (ctx.path === '/token' && settings.tokenDelay) await delay(settings.tokenDelay * 1000);
  await next();
  if (!ctx.path.startsWith('/token')) return;
  const given = ctx.oidc?.params ?? {};
  log.push({
    path: ctx.path,
    status: ctx.status,
    client: ctx.oidc?.client?.clientId,
    grantType: given.grant_type,
    presented: digest(given.refresh_token ?? given.token),
    error: ctx.body?.error ?? null,
    detail: details.get(ctx),
  });
});

async function withdraw(sub) {
  for (const id of grants.get(sub) ?? []) {
    for (const model of ['AccessToken', 'RefreshToken', 'AuthorizationCode']) await provider[model].revokeByGrantId(id);
    await (await provider.Grant.find(id))?.destroy();
  }
}

async function control(request, response) {
  const [, , what, sub, action] = request.url.split('/').map(decodeURIComponent);
  if (what === 'settings') {
    let body = '';
    for await (const chunk of request) body += chunk;
    Object.assign(settings, JSON.parse(body));
    const client = await provider.Client.find('tk-expired');
    client.clientSecretExpiresAt = settings.secretExpired ? 1 : 0; // seconds since the epoch; 0: never
  } else if (what === 'accounts' && action === 'withdraw') {
    await withdraw(sub);
  } else if (what === 'accounts' && action === 'delete') {
    deleted.add(sub);
  } else if (what !== 'log' && action !== 'create') {
    response.statusCode = 404;
  }
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(what === 'log' ? log : {}));
}

const serve = provider.callback();
http.on('request', (request, response) => (request.url.startsWith('/control/') ? control : serve)(request, response));
console.log(JSON.stringify({ base: issuer }));
