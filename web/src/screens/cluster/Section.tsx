/** A part of the screen that is fed by one question: what it shows before the first answer, and after a failed one. */
import { useId, type ReactNode } from 'react';
import type { Asked } from '../../hooks';
import { ErrorBox, Loading, Stale } from '../../ui';

interface Props<T> {
  title: string;
  of: Asked<T>;
  /** What is wrong is said above already. */
  isTold: boolean;
  className?: string;
  children: (value: T) => ReactNode;
}

export function Section<T>({ title, of, isTold, className = '', children }: Props<T>) {
  const id = useId();
  return (
    <section className={`panel ${className}`.trim()} aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      <Notice of={of} isTold={isTold} />
      {of.value !== undefined && children(of.value)}
    </section>
  );
}

/** Whether the answer is there and fresh, in words where it is not. */
export function Notice<T>({ of, isTold = false }: { of: Asked<T>; isTold?: boolean }) {
  const { value, at, error, stale, late, refresh } = of;
  if (error === undefined) return value === undefined ? <Loading /> : late ? <Stale at={at} late /> : null;
  if (isTold) return value === undefined ? <p className="cluster-quiet">Nothing was told yet.</p> : null;
  if (value === undefined) return <ErrorBox error={error} retry={refresh} />;
  return stale ? <Stale at={at} error={error} /> : null;
}
