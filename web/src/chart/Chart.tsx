/**
 * A chart of lines over time: uPlot, with our ways to zoom and to move. It knows what is drawn and where the hand is; which
 * window is shown and what is in it is told by its parent, which hears of every wish for another one.
 */
import { useEffect, useId, useImperativeHandle, useMemo, useRef, type KeyboardEvent, type Ref, type RefObject } from 'react';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import './chart.css';
import { useTokens } from '../hooks';
import { align, type Aligned } from './align';
import { drawBands } from './bands';
import { followFingers } from './fingers';
import { Glide, isMove } from './glide';
import { actOf, KEYS_HELP } from './keys';
import { Mover } from './mover';
import { optionsFor, shapeOf } from './options';
import { firstFrom, type ChartLine, type Window } from './values';
import { kept, panned, rounded, zoomed } from './window';

export interface ChartHandle {
  canvas(): HTMLCanvasElement | undefined;
}

export interface ChartProps {
  lines: ChartLine[];
  window: Window;
  width: number;
  height: number;
  band: boolean;
  logLeft: boolean;
  logRight: boolean;
  utc: boolean;
  /** What it shows, in a sentence: for those who do not see it. */
  label: string;
  /** What dragging with the main button does; with Shift it does the other. */
  drag: 'zoom' | 'pan';
  onZoom(window: Window): void;
  onPan(window: Window): void;
  onBack(): void;
  /** The time below the marker, null when it is gone. */
  onMark(timeMs: number | null): void;
  handle?: Ref<ChartHandle>;
}

/** What the events of a plot need; the props are those of the latest render. */
interface Live {
  props: ChartProps;
  aligned: Aligned;
  plot?: uPlot;
  mover?: Mover;
  glide?: Glide;
}

type LiveRef = RefObject<Live>;

function shown(plot: uPlot): Window {
  return { startMs: plot.scales.x!.min!, endMs: plot.scales.x!.max! };
}

function setWindow(plot: uPlot, { startMs, endMs }: Window): void {
  plot.setScale('x', { min: startMs, max: endMs });
}

function dataOf(aligned: Aligned): uPlot.AlignedData {
  return [aligned.times, ...aligned.columns.flat()] as uPlot.AlignedData;
}

/** Moves with the mouse until its button is up. */
function followMouse(live: Live, plot: uPlot, fromX: number): void {
  const { mover } = live;
  const from = shown(plot);
  const width = plot.over.clientWidth;
  if (mover === undefined || width === 0) return;
  const moved = (event: MouseEvent): void => mover.to(panned(from, (fromX - event.clientX) / width));
  const done = (): void => {
    document.removeEventListener('mousemove', moved);
    document.removeEventListener('mouseup', done);
    plot.over.classList.remove('panning');
    mover.release();
  };
  mover.hold();
  plot.over.classList.add('panning');
  document.addEventListener('mousemove', moved);
  document.addEventListener('mouseup', done);
}

function pressed(live: LiveRef, plot: uPlot, event: MouseEvent, zoom: (event: MouseEvent) => void): void {
  const pans = event.button === 1 || (event.button === 0 && event.shiftKey !== (live.current.props.drag === 'pan'));
  if (!pans) return zoom(event);
  followMouse(live.current, plot, event.clientX);
}

/** Ctrl and the wheel zoom, Shift or a wheel to the side move; the wheel alone is the page's. */
function wheeled(live: LiveRef, plot: uPlot, event: WheelEvent): void {
  const { mover } = live.current;
  const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) ? event.deltaX : event.shiftKey ? event.deltaY : 0;
  if (mover === undefined || (sideways === 0 && !event.ctrlKey && !event.metaKey)) return;
  event.preventDefault();
  const now = mover.window ?? shown(plot);
  if (sideways !== 0) return mover.to(panned(now, sideways / plot.over.clientWidth));
  const share = (event.clientX - plot.over.getBoundingClientRect().left) / plot.over.clientWidth;
  const around = now.startMs + share * (now.endMs - now.startMs);
  mover.to(zoomed(now, Math.min(4, Math.max(0.25, Math.exp(event.deltaY / 300))), around));
}

function selected(live: LiveRef, plot: uPlot): void {
  const { left, width } = plot.select;
  if (width < 1) return;
  const window = rounded({ startMs: plot.posToVal(left, 'x'), endMs: plot.posToVal(left + width, 'x') });
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  live.current.props.onZoom(window);
}

function markAt(live: LiveRef, plot: uPlot): void {
  const { left } = plot.cursor;
  if (live.current.mover?.isHeld === true) return; // what is below a hand that drags stays below it
  const moving = live.current.mover?.window; // the scale itself stands still until the hand rests
  const { startMs, endMs } = moving ?? shown(plot);
  live.current.props.onMark(left === undefined || left < 0 ? null : startMs + (left / plot.over.clientWidth) * (endMs - startMs));
}

/** The next time that has a value of any line; undefined at the edges of what is shown. */
function stepped({ aligned, plot }: Live, by: number): number | undefined {
  if (plot === undefined) return undefined;
  const { startMs, endMs } = shown(plot);
  const { left } = plot.cursor;
  const has = (at: number) => aligned.columns.some((columns) => typeof columns[columns.length - 1]![at] === 'number');
  const inside = aligned.times.flatMap((time, at) => (time >= startMs && time <= endMs && has(at) ? [time] : []));
  if (inside.length === 0) return undefined;
  if (left === undefined || left < 0) return by > 0 ? inside[0] : inside[inside.length - 1];
  const half = (endMs - startMs) / plot.over.clientWidth / 2; // the marker stands on whole pixels
  const here = firstFrom(inside, plot.posToVal(left, 'x') - half);
  return inside[Math.min(Math.max(here + by, 0), inside.length - 1)];
}

/** Draws anew what is zoomed, and what is moved only when the hand rests. */
function moverOf(live: LiveRef, plot: uPlot, glide: Glide): Mover {
  const draw = (window: Window): void => {
    if (isMove(shown(plot), window)) return glide.to(shown(plot), window);
    glide.end();
    setWindow(plot, window);
  };
  const rest = (window: Window): void => {
    glide.end();
    setWindow(plot, window);
    live.current.props.onPan(rounded(window));
  };
  return new Mover(draw, rest);
}

function create(live: LiveRef, box: HTMLElement, tokens: ReturnType<typeof useTokens>): () => void {
  const { props, aligned } = live.current;
  const look = { ...props, log: { left: props.logLeft, right: props.logRight }, tokens };
  const options = optionsFor(look, props.width, props.height, (line) => live.current.aligned.dots[line] ?? []);
  options.cursor!.bind = {
    mousedown: (plot, _target, zoom) => (event) => (pressed(live, plot, event, zoom), null),
    dblclick: () => () => (live.current.props.onBack(), null),
  };
  const bands = (plot: uPlot): void => drawBands(plot, live.current.props.lines, live.current.aligned, props.band);
  options.hooks = {
    drawAxes: [bands],
    setSelect: [(plot) => selected(live, plot)],
    setCursor: [(plot) => markAt(live, plot)],
  };
  const plot = new uPlot(options, dataOf(aligned), box);
  const glide = new Glide(plot);
  const mover = moverOf(live, plot, glide);
  live.current.plot = plot;
  live.current.mover = mover;
  live.current.glide = glide;
  setWindow(plot, props.window);
  followFingers(plot.over, mover, () => shown(plot));
  // uPlot's own listeners are passive: the middle button would scroll the page
  plot.over.addEventListener('mousedown', (event) => event.button === 1 && event.preventDefault());
  plot.over.addEventListener('wheel', (event) => wheeled(live, plot, event), { passive: false });
  return () => {
    mover.stop();
    plot.destroy();
    live.current.plot = undefined;
    live.current.mover = undefined;
  };
}

function useKeys(live: LiveRef): (event: KeyboardEvent) => void {
  return (event) => {
    const act = actOf(event);
    const { plot, mover, props } = live.current;
    if (act === undefined || plot === undefined || mover === undefined) return;
    event.preventDefault();
    const now = mover.window ?? shown(plot);
    if (act.kind === 'pan') mover.to(panned(now, act.share));
    else if (act.kind === 'zoom') props.onZoom(rounded(zoomed(now, act.factor)));
    else if (act.kind === 'back') props.onBack();
    else if (act.kind === 'leave') plot.setCursor({ left: -10, top: -10 });
    else {
      const time = stepped(live.current, act.by);
      if (time !== undefined) plot.setCursor({ left: plot.valToPos(time, 'x'), top: plot.over.clientHeight / 2 });
    }
  };
}

export function Chart(props: ChartProps) {
  const { lines, window, width, height, band, logLeft, logRight, label, handle } = props;
  const box = useRef<HTMLDivElement>(null);
  const helpId = useId();
  const tokens = useTokens();
  const aligned = useMemo(() => align(lines, band, { left: logLeft, right: logRight }), [lines, band, logLeft, logRight]);
  const live = useRef<Live>({ props, aligned });
  live.current.props = props;
  live.current.aligned = aligned;
  const shape = shapeOf({ lines, band, log: { left: logLeft, right: logRight }, utc: props.utc, tokens });
  useEffect(() => create(live, box.current!, tokens), [shape, tokens]);
  useEffect(() => live.current.plot?.setSize({ width, height }), [width, height]);
  useEffect(() => {
    const { plot, mover, glide } = live.current;
    glide?.end();
    plot?.batch(() => {
      plot.setData(dataOf(aligned), false);
      setWindow(plot, mover?.window ?? kept(window));
    });
  }, [aligned, window.startMs, window.endMs, shape, tokens]);
  useImperativeHandle(handle, () => ({ canvas: () => live.current.plot?.ctx.canvas }), []);
  const pressedKey = useKeys(live);
  return (
    <div className="chart" role="application" aria-roledescription="chart" aria-label={label} aria-describedby={helpId}
      tabIndex={0} onKeyDown={pressedKey}>
      <div ref={box} aria-hidden="true" />
      <p id={helpId} className="visually-hidden">{KEYS_HELP}</p>
      {aligned.unshown > 0 && (
        <p className="hint">{aligned.unshown} values of 0 or below have no place on a logarithmic axis.</p>
      )}
    </div>
  );
}
