// What we use of ComfyUI's page.

declare module "comfyui" {
  interface Widget {
    name: string;
    value: unknown;
    serialize?: boolean;
    callback?: ((...values: any[]) => any) | undefined;
  }

  interface Input {
    name: string;
    /** The name in the language of the page. */
    label?: string;
    link: number | null;
    widget?: { name: string };
  }

  interface Node {
    comfyClass?: string;
    widgets: Widget[];
    inputs: Input[];
    onConfigure?: ((...values: any[]) => any) | undefined;
    onConnectionsChange?: ((...values: any[]) => any) | undefined;
    onRemoved?: ((...values: any[]) => any) | undefined;
    addDOMWidget(
      name: string,
      type: string,
      element: HTMLElement,
      options: { serialize?: boolean; getMinHeight?: () => number },
    ): Widget;
  }

  interface Extension {
    name: string;
    init?(): void | Promise<void>;
    nodeCreated?(node: Node): void;
  }
}

declare module "*/scripts/app.js" {
  export const app: {
    canvas: { processMouseWheel(event: WheelEvent): void };
    extensionManager: { setting: { get(name: string): unknown } };
    registerExtension(extension: import("comfyui").Extension): void;
  };
}

declare module "*/scripts/api.js" {
  export const api: { fetchApi(route: string, options?: RequestInit): Promise<Response> };
}
