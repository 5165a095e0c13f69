/** The shell: navigation, theme, connection, sign-in, and one screen at a time, each loaded when it is first shown. */
import { Component, lazy, Suspense, useEffect, type ComponentType, type ReactNode } from 'react';
import { ApiError, connection, slowSince } from './api/client';
import { openSignIn, signedOut, signOut, token } from './api/session';
import { askMe } from './api/me';
import type { Me } from './api/types';
import { usePolled, type Asked } from './hooks';
import { LOADERS, type Loader } from './screens';
import { SignIn } from './SignIn';
import { useStore } from './store';
import { visible } from './text';
import { ThemeSwitch } from './ThemeSwitch';
import { formatTime } from './time';
import { Badge, Button, ErrorBox, Loading } from './ui';
import { hrefOf, SCREENS, useScreen, type Screen } from './url';

const TITLES: Record<Screen, string> = { query: 'Query', explore: 'Explore', live: 'Live', cluster: 'Cluster', data: 'Data' };

/** While the server is away the code of a screen is waited for; one that is missing for another reason is an error. */
async function patiently(load: Loader): ReturnType<Loader> {
  for (;;) {
    try {
      return await load();
    } catch (error) {
      if (connection.get().kind === 'up') throw error;
      await new Promise<void>((resolve) => {
        const stop = connection.subscribe(() => {
          stop();
          resolve();
        });
      });
    }
  }
}

const VIEWS: Record<Screen, ComponentType> = {
  query: lazy(() => patiently(LOADERS.query)),
  explore: lazy(() => patiently(LOADERS.explore)),
  live: lazy(() => patiently(LOADERS.live)),
  cluster: lazy(() => patiently(LOADERS.cluster)),
  data: lazy(() => patiently(LOADERS.data)),
};

/** The other screens' code is fetched once the first one stands, so that they open while the server is away, too. */
const FETCH_REST_MS = 2000;

function fetchRest(): void {
  // one that fails is asked for again, and then said to have failed, when it is opened
  for (const load of Object.values(LOADERS)) load().catch(() => undefined);
}

interface GuardState {
  failed?: Error;
}

/** A screen that fails, or whose code cannot be loaded, leaves the shell standing. */
class Guard extends Component<{ children: ReactNode }, GuardState> {
  override state: GuardState = {};

  static getDerivedStateFromError(failed: Error): GuardState {
    return { failed };
  }

  override render() {
    const { failed } = this.state;
    if (failed === undefined) return this.props.children;
    return <Failed message={failed.message} />;
  }
}

/** Loading the page anew helps only where there is a server to load it from. */
function Failed({ message }: { message: string }) {
  const away = useStore(connection).kind === 'down';
  return <ErrorBox error={new ApiError(0, 'page', `This screen failed: ${message}`)} retry={away ? undefined : () => window.location.reload()} />;
}

function Nav({ screen }: { screen: Screen }) {
  return (
    <nav aria-label="Screens">
      <ul>
        {SCREENS.map((one) => (
          <li key={one}><a href={hrefOf(one)} aria-current={one === screen ? 'page' : undefined}>{TITLES[one]}</a></li>
        ))}
      </ul>
    </nav>
  );
}

function ConnectionState() {
  const { kind } = useStore(connection);
  const waits = useStore(slowSince) !== null;
  const [tone, text] = kind === 'down' ? ['bad', 'no connection'] as const
    : waits ? ['warn', 'waiting'] as const
      : kind === 'up' ? ['ok', 'connected'] as const : ['info', 'connecting'] as const;
  return <span className="connection" role="status"><Badge tone={tone}>{text}</Badge></span>;
}

function Away() {
  const state = useStore(connection);
  const waitingMs = useStore(slowSince);
  if (state.kind !== 'down') {
    return waitingMs === null ? null : (
      <div className="away slow" role="status">
        The server takes long: an answer has been waited for since {formatTime(waitingMs)}. What is shown stays until it comes.
      </div>
    );
  }
  return (
    <div className="away" role="alert">
      The server has not been reached since {formatTime(state.sinceMs)}. What is shown stays; the page tries again by itself.
    </div>
  );
}

function Person({ me }: { me: Asked<Me> }) {
  const has = useStore(token) !== '';
  const wanted = me.value?.auth === true || me.error?.status === 401;
  if (has && me.error?.status !== 401) {
    return (
      <span className="person">
        {me.value?.name ? <bdi>{visible(me.value.name)}</bdi> : null} <Button small kind="quiet" onClick={signOut}>Sign out</Button>
      </span>
    );
  }
  return wanted ? <Button small onClick={openSignIn}>Sign in</Button> : null;
}

export function App() {
  const [screen] = useScreen();
  const me = usePolled((signal) => askMe({ signal, timeoutMs: 10_000 }), 5_000, []);
  const View = VIEWS[screen];
  const session = useStore(signedOut);
  useEffect(() => {
    document.title = `${TITLES[screen]} · minitrue`;
  }, [screen]);
  useEffect(() => {
    const timer = setTimeout(fetchRest, FETCH_REST_MS);
    return () => clearTimeout(timer);
  }, []);
  return (
    <>
      <a className="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById('main')?.focus(); }}>Skip to the content</a>
      <header className="top">
        <span className="brand">minitrue</span>
        <Nav screen={screen} />
        <span className="top-end"><ConnectionState /><Person me={me} /><ThemeSwitch /></span>
      </header>
      <Away />
      <main id="main" tabIndex={-1}>
        <h1 className="visually-hidden">{TITLES[screen]}</h1>
        <Guard key={`${screen} ${session}`}><Suspense fallback={<Loading what={TITLES[screen]} />}><View /></Suspense></Guard>
      </main>
      <footer className="foot">
        minitrue {me.value?.version ?? ''} · <a href="/docs">API</a>
      </footer>
      <SignIn />
    </>
  );
}
