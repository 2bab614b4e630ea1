import type { RefObject } from "react";
import { useCallback, useEffect, useRef, useState } from "react";

interface FollowEnd {
  /** Whether the reader has left the end. */
  away: boolean;
  /** Goes to the end, and stays there. */
  follow(): void;
}

/** In pixels; the end moves on while a reader scrolls towards it. */
const NEAR = 96;

/**
 * Keeps the end of a scroller in view while the reader is there. Scrolling up lets go, however little
 * it was: a distance alone would pull a slow scroll back. Coming back to the end holds on again.
 */
export function useFollowEnd(scroller: RefObject<HTMLElement | null>): FollowEnd {
  const [away, setAway] = useState(false);
  const following = useRef(true);
  const lastTop = useRef(0);

  const toEnd = useCallback((): void => {
    const element = scroller.current;
    if (element === null || !following.current) return;
    setAway(false);
    element.scrollTop = element.scrollHeight;
    lastTop.current = element.scrollTop;
  }, [scroller]);

  useEffect(() => {
    const element = scroller.current;
    if (element === null) return;
    function scrolled(): void {
      if (element === null) return;
      const { scrollTop, scrollHeight, clientHeight } = element;
      const distance = scrollHeight - scrollTop - clientHeight;
      // Moved up and yet at the very end: the view grew, the reader did nothing.
      if (scrollTop < lastTop.current && distance > 1) following.current = false;
      else if ((scrollTop > lastTop.current && distance <= NEAR) || distance <= 1) following.current = true;
      lastTop.current = scrollTop;
      setAway(!following.current && distance > NEAR);
    }
    element.addEventListener("scroll", scrolled, { passive: true });
    // The content has grown, or the window or the writing area changed its size. An observer is told after the layout
    // of a frame; to ask for the end any earlier would make one more of it.
    const observer = new ResizeObserver(toEnd);
    observer.observe(element);
    for (const content of element.children) observer.observe(content);
    return () => {
      element.removeEventListener("scroll", scrolled);
      observer.disconnect();
    };
  }, [scroller, toEnd]);

  const follow = useCallback((): void => {
    following.current = true;
    toEnd();
  }, [toEnd]);

  return { away, follow };
}
